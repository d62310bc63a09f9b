# SPDX-License-Identifier: Apache-2.0
"""Differences between two networks: of their outputs, and of every value inside them."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from djpq_nncf.capture import layer_name
from djpq_nncf.channels import ChannelAnalysis, kept_indices
from tests.zoo.registry import Example


@torch.no_grad()
def run(model: nn.Module, example: Example, *, batch: int | None = None) -> Any:
    """Output of a model in eval mode."""
    args, kwargs = example.inputs(batch=batch)
    return model.eval()(*args, **kwargs)


def variation(output: Any) -> float:
    """Largest difference between the first two samples of any output, relative to its largest element."""
    tensors = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.dim() > 0 and x.is_floating_point()]
    return max(_tensor_error(x[0], x[1]) for x in tensors if len(x) > 1)


def relative_error(actual: Any, expected: Any) -> float:
    """Largest difference of an element, relative to the largest element of its tensor, over all outputs.

    Raises:
        AssertionError: the outputs have another structure, another shape or another type, or are not finite.
    """
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
    worst = 0.0
    for ours, theirs in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        if isinstance(theirs, Tensor):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            assert bool(theirs.isfinite().all()), "the network's own output is not finite"
            worst = max(worst, _tensor_error(ours, theirs))
        else:
            assert ours == theirs
    return worst


def _tensor_error(actual: Tensor, expected: Tensor) -> float:
    if not actual.is_floating_point():
        return float("inf") if bool((actual != expected).any()) else 0.0
    finite = expected.isfinite()  # attention masks hold -inf
    if not bool(torch.equal(actual.isfinite(), finite)):
        return float("inf")
    difference = (actual.double() - expected.double()).where(finite, 0).abs()
    if not bool(difference.any()):
        return 0.0
    return float(difference.max() / expected.double().where(finite, 0).abs().max())


def node_errors(
    gated: GraphModule, removed: GraphModule, analysis: ChannelAnalysis, keep: np.ndarray, example: Example
) -> Iterator[tuple[str, float]]:
    """For every node of a removed network, how far it is from the kept channels of the gated network's value.

    Outputs may hide errors: where nearly all channels are closed they hardly depend on what is in front of them.
    """
    ours, theirs = _values(removed, example), _values(gated, example)
    for node in removed.graph.nodes:
        value, expected = ours[node.name], theirs.get(node.name)
        # Weights hold what was folded into them.
        if node.op == "get_attr" or not isinstance(value, Tensor) or not isinstance(expected, Tensor):
            continue
        for dim, ids in enumerate(analysis.node_labels.get(node.name, ())):
            if ids is not None:
                expected = expected.index_select(dim, torch.from_numpy(kept_indices(ids, keep)))
        where = f"node {node.name} ({node.target}) in '{layer_name(node)}'"
        if value.shape != expected.shape:
            yield f"{where}, {list(value.shape)} instead of {list(expected.shape)}", float("inf")
        else:
            yield where, _tensor_error(value, expected)


def _values(model: GraphModule, example: Example) -> dict[str, Any]:
    recorder = _Recorder(copy.deepcopy(model).eval())
    leaves = pytree.tree_leaves(example.inputs())
    with torch.no_grad():
        recorder.run(*leaves, enable_io_processing=False)
    return recorder.values


class _Recorder(Interpreter):
    def __init__(self, model: GraphModule) -> None:
        super().__init__(model, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]
