# SPDX-License-Identifier: Apache-2.0
"""The operators whose multiply-accumulates are counted."""

from collections import Counter
from dataclasses import dataclass
from math import prod

import torch
from torch.fx import GraphModule, Node

from djpq_nncf.capture import layer_name

aten = torch.ops.aten

_CONVOLUTIONS = {
    getattr(getattr(aten, f"conv{rank}d"), overload) for rank in (1, 2, 3) for overload in ("default", "padding")
}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_LINEAR = {aten.linear.default}


@dataclass(frozen=True)
class MacOperator:
    """A convolution or linear layer of a captured graph.

    Attributes:
        layer: name users see, unique in the network.
        node: name of its node.
        kind: operator, as ATen calls it ("conv2d", "linear").
        weight: state-dict name of its weight.
        weight_shape: shape of the weight.
        macs: multiply-accumulates for one sample (padding counted, bias not).
    """

    layer: str
    node: str
    kind: str
    weight: str
    weight_shape: tuple[int, ...]
    macs: int


def find_mac_operators(model: GraphModule) -> tuple[MacOperator, ...]:
    """Convolutions and linear layers with a weight of their own, in the order of the graph."""
    seen: Counter[str] = Counter()
    found = []
    for node in model.graph.nodes:
        if node.op != "call_function" or node.target not in _CONVOLUTIONS | _TRANSPOSED | _LINEAR:
            continue
        weight = weight_source(node)
        if weight is None:
            continue
        name = layer_name(node)
        seen[name] += 1
        found.append(
            MacOperator(
                layer=name if seen[name] == 1 else f"{name}#{seen[name]}",
                node=node.name,
                kind=str(node.target).split(".")[1],
                weight=str(weight.target),
                weight_shape=tuple(weight.meta["val"].shape),
                macs=_macs(node, weight, _batch(model)),
            )
        )
    return tuple(found)


def weight_source(node: Node) -> Node | None:
    """The get_attr node behind an operator's weight argument, through whatever was inserted between."""
    source = node.args[1]
    while isinstance(source, Node) and source.op == "call_module":
        source = source.args[0]
    return source if isinstance(source, Node) and source.op == "get_attr" else None


def _macs(node: Node, weight: Node, batch: int) -> int:
    shape = weight.meta["val"].shape
    if node.target in _TRANSPOSED:
        assert isinstance(node.args[0], Node)
        return prod(node.args[0].meta["val"].shape) * prod(shape[1:]) // batch
    return prod(node.meta["val"].shape) * prod(shape[1:]) // batch


def _batch(model: GraphModule) -> int:
    return int(model.meta["djpq_inputs"][0].shape[0])
