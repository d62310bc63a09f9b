# SPDX-License-Identifier: Apache-2.0
"""Comparisons shared by the capture tests."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from djpq_nncf.capture import capture
from djpq_nncf.capture._train_only import AttentionDropout, TrainOnly

ALLOWED_MODULES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    TrainOnly,
    AttentionDropout,
)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def run(model: nn.Module, args: Any, kwargs: Any = None, *, train: bool = False) -> Any:
    """Output of ``model`` with the same random numbers in every call, on copies of the inputs."""
    args, kwargs = copy.deepcopy((args, kwargs or {}))
    torch.manual_seed(7)
    return model.train(train)(*args, **kwargs)


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected) > 0
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_same_behaviour(model: nn.Module, gm: fx.GraphModule, args: Any, kwargs: Any = None) -> None:
    """Outputs in eval and train mode, gradients and the state after a training step agree."""
    reference = copy.deepcopy(model)
    ours = copy.deepcopy(gm)
    assert_same(run(ours, args, kwargs), run(reference, args, kwargs))
    outputs = run(ours, args, kwargs, train=True), run(reference, args, kwargs, train=True)
    assert_same(*outputs)
    for output in outputs:
        trained = [t for t in tensors(output) if t.requires_grad]
        if trained:
            sum(t.square().mean() for t in trained).backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            assert_same(gradients[name].grad, parameter.grad, 1e-5)
    state = ours.state_dict()
    assert set(state) == set(reference.state_dict())
    for name, value in reference.state_dict().items():
        assert_same(state[name], value)


def assert_promised_form(gm: fx.GraphModule) -> None:
    """Out-of-place operators, BatchNorm and modules that are random in train mode, concrete shapes; nothing else."""
    modules = dict(gm.named_modules(remove_duplicate=False))
    for node in gm.graph.nodes:
        if node.op == "call_module":
            assert type(modules[node.target]) in ALLOWED_MODULES, node.target
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable, node.target
        assert not isinstance(node.target, torch._ops.HigherOrderOperator), node.target
        for value in pytree.tree_leaves(node.meta["val"]):
            assert not isinstance(value, torch.SymInt)
            if isinstance(value, Tensor):
                assert all(type(size) is int for size in value.shape)
    targets = [node.target for node in gm.graph.nodes if node.op == "get_attr"]
    assert len(targets) == len(set(targets))


def check(model: nn.Module, args: Any, kwargs: Any = None, other: Any = None) -> fx.GraphModule:
    """Capture ``model`` and compare it with the original on the example, and on ``other`` arguments."""
    gm = capture(model, args, kwargs)
    assert_promised_form(gm)
    assert_same_behaviour(model, gm, args, kwargs)
    if other is not None:
        assert_same_behaviour(model, gm, other, kwargs)
    return gm
