# SPDX-License-Identifier: Apache-2.0
"""What the values of a captured graph depend on."""

import operator
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.dropout import _DropoutNd

aten = torch.ops.aten

SHAPE_ONLY = frozenset(
    {
        aten.empty_like.default, aten.full_like.default, aten.new_empty.default, aten.new_full.default,
        aten.new_ones.default, aten.new_zeros.default, aten.ones_like.default, aten.sym_size.int,
        aten.zeros_like.default,
    }
)  # fmt: skip
"""Operators that read shape and type of a tensor, not its values."""

_MOVING = frozenset(
    {
        "alias", "cat", "channel_shuffle", "chunk", "clone", "constant_pad_nd", "contiguous", "detach", "expand",
        "flatten", "index", "index_select", "max_pool1d", "max_pool2d", "max_pool3d", "movedim", "narrow", "pad",
        "permute", "pixel_shuffle", "pixel_unshuffle", "relu", "repeat", "repeat_interleave", "reshape", "select",
        "slice", "split", "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unflatten",
        "unsqueeze", "view",
    }
)  # fmt: skip
"""Operators whose output holds nothing but values of their inputs, and zero."""

_SELECT = frozenset({aten.embedding.default, aten.embedding_bag.default})


@dataclass(frozen=True)
class Dataflow:
    """Nodes of a graph by what their value depends on.

    Attributes:
        computed: depends on the values of an input.
        activations: floating-point, and descends from a floating-point input or from an embedding that an input
            selects. Masks and positions made from integers are not among them.
        learned: floating-point, and descends from a parameter without any input (except for sizes).
    """

    computed: frozenset[Node]
    activations: frozenset[Node]
    learned: frozenset[Node]


def analyse_dataflow(model: GraphModule) -> Dataflow:
    """Classify every node of a captured graph."""
    computed: set[Node] = set()
    activations: set[Node] = set()
    learned: set[Node] = set()
    for node in model.graph.nodes:
        sources = () if node.target in SHAPE_ONLY else node.all_input_nodes
        if node.op == "placeholder" or any(source in computed for source in sources):
            computed.add(node)
            descends = node.op == "placeholder" or any(source in activations for source in sources)
            selects = node.target in _SELECT and node.args[1] in computed
            if (descends or selects) and is_floating(node):
                activations.add(node)
        elif is_floating(node) and (_is_parameter(model, node) or any(source in learned for source in sources)):
            learned.add(node)
    return Dataflow(frozenset(computed), frozenset(activations), frozenset(learned))


def _is_parameter(model: GraphModule, node: Node) -> bool:
    path, _, name = str(node.target).rpartition(".")
    return node.op == "get_attr" and isinstance(getattr(model.get_submodule(path), name), nn.Parameter)


def moved_values(model: GraphModule, node: Node) -> list[Node]:
    """The floating-point values of which ``node`` holds nothing but elements (and zeros); none if it computes."""
    if node.op == "call_module":
        return node.all_input_nodes[:1] if isinstance(model.get_submodule(str(node.target)), _DropoutNd) else []
    if node.target is operator.getitem:
        return node.all_input_nodes[:1]
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.name.removeprefix("aten::") not in _MOVING:
        return []
    return [source for source in node.all_input_nodes if is_floating(source)]


def is_floating(node: Node) -> bool:
    """Whether a value is a floating-point tensor, or holds one."""
    value = node.meta.get("val")
    parts = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)
