# SPDX-License-Identifier: Apache-2.0
"""Inputs, outputs, names and what a captured graph has to survive."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from djpq_nncf.capture import InputSpec, capture, is_captured, propagate_shapes
from tests.capture.helpers import assert_same, check, run


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...]


pytree.register_dataclass(Result)


class Structured(nn.Module):
    """Unused parameters, tied weights, root-level and non-persistent tensors; dict input, any output."""

    def __init__(self, output: str = "tensor") -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 6)
        self.fc = nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.emb.weight
        self.aux = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))
        self.never = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.rand(6), persistent=False)
        self.plain = torch.rand(6)
        self.fc.bias.requires_grad_(False)
        self.output = output

    def forward(self, inputs: dict[str, Tensor], *, gain: Tensor | None = None, flag: bool = True) -> Any:
        hidden = self.fc(self.emb(inputs["ids"]).mean(1)) * self.scale + self.shift + self.plain
        if gain is not None and flag:
            hidden = hidden * gain
        hidden = hidden * torch.tensor(2.0)
        logits = self.head(hidden)
        if self.output == "dict":
            return {"logits": logits, "hidden": (hidden, None)}
        return Result(logits, (hidden,)) if self.output == "dataclass" else logits


def ids(batch: int) -> dict[str, Tensor]:
    return {"ids": torch.randint(0, 10, (batch, 5))}


@pytest.mark.parametrize("output", ["tensor", "dict", "dataclass"])
def test_output_structure(output: str) -> None:
    model = Structured(output)
    gm = check(model, (ids(4),), {"gain": torch.rand(4, 1), "flag": True})
    args, kwargs = (ids(3),), {"flag": True, "gain": torch.rand(3, 1)}
    ours, theirs = run(gm, args, kwargs), run(model, args, kwargs)
    assert type(ours) is type(theirs)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    assert_same(ours, theirs)


def test_state_keeps_its_names_ties_and_flags() -> None:
    model = Structured()
    gm = capture(model, (ids(4),))
    for kept in (gm, copy.deepcopy(gm)):
        assert set(kept.state_dict()) == set(model.state_dict())
        assert {"shift", "_constants.plain"} < {name for name, _ in kept.named_buffers()}
        assert kept.head.weight is kept.emb.weight
        flags = {name: p.requires_grad for name, p in kept.named_parameters()}
        assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
        kept.load_state_dict(model.state_dict())
    own = {p.data_ptr() for p in gm.parameters()}
    assert not own & {p.data_ptr() for p in model.parameters()}


def test_the_original_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    x = torch.ones(2, 3, 8, 8)
    gm = capture(model, (x,))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert_same(model.state_dict(), before, 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in gm.modules())


def test_inputs_are_described() -> None:
    gm = capture(Structured(), (ids(1),), {"gain": torch.rand(1, 1), "flag": True})
    assert gm.meta["djpq_inputs"] == (
        InputSpec("inputs_ids", (2, 5), torch.int64),
        InputSpec("gain", (2, 1), torch.float32),
        InputSpec("flag", (), None, batched=False, value=True),
    )


class Weighted(nn.Module):
    def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
        return x @ matrix


@pytest.mark.parametrize("rows", [4, 8], ids=["batch-equals-rows", "batch-differs"])
def test_inputs_that_are_not_batched(rows: int) -> None:
    gm = check(
        Weighted(),
        (torch.randn(4, rows), torch.randn(rows, 3)),
        other=(torch.randn(7, rows), torch.randn(rows, 3)),
    )
    assert [spec.batched for spec in gm.meta["djpq_inputs"]] == [True, False]


def test_inputs_that_are_not_batched_with_a_batch_of_one() -> None:
    check(Weighted(), (torch.randn(1, 1), torch.randn(1, 3)), other=(torch.randn(7, 1), torch.randn(1, 3)))


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        with torch.no_grad():
            scale = self.bn(x).abs().mean()
            with torch.autocast("cpu", enabled=False):
                scale = scale + 1
        return x * scale


def test_no_grad_inside_forward() -> None:
    check(NoGrad(), (torch.randn(4, 4),))


@pytest.fixture(scope="module")
def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(144, 5),
    )


IMAGE = (torch.randn(2, 3, 8, 8),)


def test_deepcopy_keeps_the_mark(convnet: nn.Module) -> None:
    gm = copy.deepcopy(capture(convnet, IMAGE))
    assert is_captured(gm) and not is_captured(convnet)
    assert gm.meta["djpq_inputs"]
    assert_same(run(gm, IMAGE, train=True), run(copy.deepcopy(convnet), IMAGE, train=True))


def test_pickle(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE)
    loaded = pickle.loads(pickle.dumps(gm))
    assert_same(run(loaded, IMAGE), run(gm, IMAGE))
    assert_same(run(loaded, IMAGE, train=True), run(gm, IMAGE, train=True))
    assert set(loaded.state_dict()) == set(convnet.state_dict())


def test_conversion_to_another_dtype(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE).to(torch.float64)
    x = (IMAGE[0].double(),)
    assert_same(run(gm, x), run(copy.deepcopy(convnet).double(), x))
    propagate_shapes(gm)
    output = next(iter(reversed(gm.graph.nodes)))
    assert pytree.tree_leaves(output.meta["val"])[0].dtype == torch.float64


def test_compile(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE).eval()
    compiled = torch.compile(gm, backend="aot_eager", fullgraph=True)
    assert_same(compiled(*IMAGE), gm(*IMAGE))


def test_export_again(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE).eval()
    program = torch.export.export(gm, IMAGE)
    assert_same(program.module()(*IMAGE), gm(*IMAGE))


def test_capturing_twice_copies_with_new_shapes(convnet: nn.Module) -> None:
    first = capture(convnet, IMAGE)
    second = capture(first, (torch.randn(5, 3, 8, 8),))
    assert is_captured(second) and second is not first
    assert second.meta["djpq_inputs"][0].shape == (5, 3, 8, 8)
    (placeholder,) = second.graph.find_nodes(op="placeholder")
    assert placeholder.meta["val"].shape[0] == 5
    assert first.meta["djpq_inputs"][0].shape == (2, 3, 8, 8)
    assert {p.data_ptr() for p in first.parameters()}.isdisjoint(p.data_ptr() for p in second.parameters())
