# SPDX-License-Identifier: Apache-2.0
"""Operators that work element by element: activations, dropout, sums and products with broadcasting."""

import torch
from torch import nn
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext, is_tensor, shape_of, where
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._registry import register_channel_rule
from djpq_nncf.channels.rules._arguments import argument

aten = torch.ops.aten

_UNARY = [
    "relu", "relu6", "sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu",
    "celu", "selu", "softplus", "mish", "log_sigmoid", "abs", "neg", "exp", "sqrt", "rsqrt", "square", "clamp",
    "clamp_min", "clamp_max", "clone", "contiguous", "detach", "alias", "dropout", "feature_dropout",
]  # fmt: skip
_BINARY = ["add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow"]


def _overloads(name: str) -> list[torch._ops.OpOverload]:
    packet = getattr(aten, name)
    return [getattr(packet, o) for o in packet.overloads() if not ("out" in o or "names" in o.lower())]


@register_channel_rule(*(o for name in _UNARY for o in _overloads(name)))
@register_channel_rule(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)
@register_channel_rule(nn.modules.dropout._DropoutNd)
def unary(node: Node, context: RuleContext) -> None:
    """Labels pass unchanged."""
    sources = [source for source in node.all_input_nodes if is_tensor(source)]
    if len(sources) == 1:
        context.set(node, context.labels(sources[0]))
    else:
        binary(node, context)


@register_channel_rule(*(o for name in _BINARY for o in _overloads(name)))
def binary(node: Node, context: RuleContext) -> None:
    """Dimensions are aligned from the right; channels that meet are tied."""
    rank = len(shape_of(node))
    result: list[Labels | None] = [None] * rank
    operands = [source for source in node.args if is_tensor(source)]
    for dim in range(rank):
        size = shape_of(node)[dim]
        meeting = []
        for source in operands:
            assert isinstance(source, Node)
            own = dim - rank + len(shape_of(source))
            if own >= 0 and shape_of(source)[own] == size:
                meeting.append((source, own, context.labels(source)[own]))
        known = [ids for _, _, ids in meeting if ids is not None]
        if not known:
            continue
        result[dim] = known[0]
        for source, own, ids in meeting:
            if ids is not None:
                context.channels.tie(known[0], ids)
            elif source.op == "get_attr":
                context.bind_parameter(node, source, own, known[0])
            elif size > 1:
                context.channels.freeze(known[0], where(node, "combines it with a tensor that cannot shrink"))
    context.set(node, result)


@register_channel_rule(aten.prelu.default)
def prelu(node: Node, context: RuleContext) -> None:
    """The learned slope is one number, or one per channel of dimension 1."""
    source, slope = argument(node, "self"), argument(node, "weight")
    labels = context.labels(source)
    context.set(node, labels)
    if len(labels) > 1 and labels[1] is not None and shape_of(slope)[0] > 1:
        context.bind_parameter(node, slope, 0, labels[1])
