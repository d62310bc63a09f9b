# SPDX-License-Identifier: Apache-2.0
"""Convolutions: plain, grouped, depthwise, transposed, in one to three dimensions."""

import torch
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext, shape_of, where
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._registry import Removal, register_channel_rule, register_rewrite
from djpq_nncf.channels.rules._arguments import argument, set_argument

aten = torch.ops.aten

_FORWARD = [
    getattr(getattr(aten, f"conv{rank}d"), overload) for rank in (1, 2, 3) for overload in ("default", "padding")
]
_TRANSPOSED = [aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input]


@register_channel_rule(*_FORWARD)
def convolution(node: Node, context: RuleContext) -> None:
    """Output channels are new ones, except where every one of them belongs to one input channel (depthwise)."""
    source, weight = argument(node, "input"), argument(node, "weight")
    if not _plain(node, context, source, weight):
        return
    groups = argument(node, "groups")
    out_channels, in_per_group = shape_of(weight)[:2]
    incoming = context.labels(source)[-len(shape_of(weight)) + 1]
    if groups > 1 and in_per_group == 1:
        outgoing = None if incoming is None else incoming.repeat(out_channels // groups)
    else:
        if incoming is not None:
            context.bind_parameter(node, weight, 1, _tie_across(context, incoming, groups)[:in_per_group])
            context.consume(node, weight, 1)
        outgoing = _tie_across(context, context.produce(node, out_channels), groups)
    _finish(node, context, weight, 0, outgoing)


@register_channel_rule(*_TRANSPOSED)
def transposed_convolution(node: Node, context: RuleContext) -> None:
    """As a convolution, with the weight's first two dimensions exchanged."""
    source, weight = argument(node, "input"), argument(node, "weight")
    if not _plain(node, context, source, weight):
        return
    if argument(node, "groups") != 1:
        context.freeze_inputs(node, where(node, "is a grouped transposed convolution"))
        return
    incoming = context.labels(source)[-len(shape_of(weight)) + 1]
    if incoming is not None:
        context.bind_parameter(node, weight, 0, incoming)
        context.consume(node, weight, 0)
    _finish(node, context, weight, 1, context.produce(node, shape_of(weight)[1]))


@register_rewrite(*_FORWARD)
def shrink_groups(node: Node, removal: Removal) -> None:
    """A depthwise convolution has one group per remaining input channel."""
    groups = argument(node, "groups")
    weight = argument(node, "weight")
    while weight.op == "call_module":  # a quantizer
        weight = weight.args[0]
    outgoing = removal.parameter_labels(weight.target)[:1]
    if groups > 1 and shape_of(weight)[1] == 1 and outgoing and outgoing[0] is not None:
        multiplier = len(outgoing[0]) // groups
        set_argument(node, "groups", len(removal.kept(outgoing[0])) // multiplier)


def _plain(node: Node, context: RuleContext, source: Node, weight: Node) -> bool:
    if weight.op != "get_attr":
        context.freeze_inputs(node, where(node, "has a computed weight"))
        return False
    labels = context.labels(source)
    channel_dim = len(labels) - len(shape_of(weight)) + 1
    for dim, ids in enumerate(labels):
        if ids is not None and dim != channel_dim:
            context.channels.freeze(ids, where(node, "takes it for positions or samples"))
    return True


def _tie_across(context: RuleContext, ids: Labels, groups: int) -> Labels:
    """Convolution groups stay equally wide: the channels at one position of every group go together."""
    per_group = ids.reshape(groups, -1)
    for other in per_group[1:]:
        context.channels.tie(per_group[0], other)
    return ids


def _finish(node: Node, context: RuleContext, weight: Node, dim: int, outgoing: Labels | None) -> None:
    labels: list[Labels | None] = [None] * len(shape_of(node))
    labels[-len(shape_of(weight)) + 1] = outgoing
    context.set(node, labels)
    if outgoing is None:
        return
    context.bind_parameter(node, weight, dim, outgoing)
    bias = argument(node, "bias")
    if bias is not None:
        context.bind_parameter(node, bias, 0, outgoing)
