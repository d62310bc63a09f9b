# SPDX-License-Identifier: Apache-2.0
"""Operators that work element by element: activations, dropout, sums and products with broadcasting."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._nodes import is_tensor, shape_of, where
from djpq_nncf.channels._registry import register_channel_rule
from djpq_nncf.channels.rules._arguments import argument

aten = torch.ops.aten

_UNARY = [
    "relu", "relu6", "sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu",
    "celu", "selu", "softplus", "mish", "log_sigmoid", "abs", "neg", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt",
    "square", "reciprocal", "sin", "cos", "erf", "floor", "round", "sign", "clamp", "clamp_min", "clamp_max",
    "dropout", "feature_dropout", "threshold", "logical_not", "fill", "zero", "bitwise_not",
    "isnan", "isinf", "nan_to_num", "zeros_like", "ones_like", "full_like", "empty_like",
]  # fmt: skip
_BROADCASTING = [
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "remainder", "fmod", "where", "masked_fill",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "bitwise_and", "bitwise_or", "lerp", "addcmul",
    "addcdiv", "atan2", "expand_as", "type_as", "floor_divide",
]  # fmt: skip


def _overloads(name: str) -> list[torch._ops.OpOverload]:
    packet = getattr(aten, name)
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return [one for one in overloads if not any(argument.is_out for argument in one._schema.arguments)]


_SUMS = {*_overloads("add"), *_overloads("sub")}


@register_channel_rule(*(o for name in [*_UNARY, *_BROADCASTING] for o in _overloads(name)))
@register_channel_rule(*_overloads("_to_copy"), *_overloads("to"), nn.modules.dropout._DropoutNd)
def elementwise(node: Node, context: RuleContext) -> None:
    """Dimensions are aligned from the right; channels that meet are tied."""
    if not is_tensor(node):
        context.freeze_inputs(node, where(node, "has no channel rule"))
        return
    shape = shape_of(node)
    operands = [source for source in node.all_input_nodes if is_tensor(source)]
    if node.target in _SUMS:
        _mark_stream(context, operands)
    if len(operands) == 1 and shape_of(operands[0]) == shape:
        context.set(node, context.labels(operands[0]))
        return
    result: list[Labels | None] = []
    for dim, size in enumerate(shape):
        meeting = [
            context.labels(source)[own]
            for source in operands
            if (own := dim - len(shape) + len(shape_of(source))) >= 0 and shape_of(source)[own] == size
        ]
        ids = meeting[0] if meeting else None
        for other in meeting[1:]:
            if size > 1:
                ids = context.tie(ids, other, where(node, "combines it with a tensor that cannot shrink"))
            else:
                ids = ids if ids is not None else other
        result.append(ids)
    context.set(node, result)


def _mark_stream(context: RuleContext, operands: list[Node]) -> None:
    """What several layers add to is a residual stream (a GELU written out adds a value to one made of itself)."""
    summed = [context.labels(operand) for operand in operands if operand.op != "get_attr"]
    for known in itertools.zip_longest(*(reversed(labels) for labels in summed)):
        meeting = [ids for ids in known if ids is not None]
        if len(meeting) > 1:
            first, second = (context.channels.roots(ids) for ids in meeting[:2])
            if not np.array_equal(first, second):
                context.mark(meeting[0], "residual")


@register_channel_rule(aten.prelu.default)
def prelu(node: Node, context: RuleContext) -> None:
    """The learned slope is one number, or one per channel of dimension 1."""
    source, slope = argument(node, "self"), argument(node, "weight")
    labels = list(context.labels(source))
    own_slopes = context.labels(slope)
    if len(labels) > 1 and shape_of(slope) not in ((), (1,)):
        labels[1] = context.tie(labels[1], own_slopes[0], where(node, "has a slope for each of them"))
    context.set(node, labels)


@register_channel_rule(aten.glu.default)
def gated_linear_unit(node: Node, context: RuleContext) -> None:
    """The first half is multiplied by the second."""
    source, dim = argument(node, "self"), argument(node, "dim")
    labels = list(context.labels(source))
    ids = labels[dim]
    if ids is not None:
        first, second = ids.reshape(2, -1)
        labels[dim] = context.tie(first, second, "")
    context.set(node, labels)
