# SPDX-License-Identifier: Apache-2.0
"""Convolutions: plain, grouped, depthwise, transposed, in one to three dimensions."""

import numpy as np
import torch
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._nodes import shape_of, where
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
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    if weight.op != "get_attr":
        context.freeze_inputs(node, where(node, "has a computed weight"))
        return
    labels = _all_but_channels(node, context)
    channel_dim = len(shape_of(node)) - len(shape_of(weight)) + 1
    groups, (rows, columns) = argument(node, "groups"), shape_of(weight)[:2]
    incoming = context.labels(source)[channel_dim]
    outgoing = context.produce(node, weight, 0, bias)
    if groups > 1 and columns == 1:
        repeated = None if incoming is None else incoming.repeat(rows // groups)
        context.tie(outgoing, repeated, where(node, "filters each of them by itself"))
    elif groups > 1:
        which, position = _grid(context, incoming, groups, node)
        context.consume(node, weight, 1, position)
        rows_per_group = context.channels.new(rows // groups)
        context.channels.tie(outgoing, _outputs(context, which, rows_per_group, groups))
    else:
        context.consume(node, weight, 1, incoming)
    _finish(node, context, labels, outgoing, (outgoing, context.parameter(weight, 1)))


@register_channel_rule(*_TRANSPOSED)
def transposed_convolution(node: Node, context: RuleContext) -> None:
    """As a convolution, with the weight's first two dimensions exchanged."""
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    if weight.op != "get_attr":
        context.freeze_inputs(node, where(node, "has a computed weight"))
        return
    labels = _all_but_channels(node, context)
    channel_dim = len(shape_of(node)) - len(shape_of(weight)) + 1
    groups, incoming = argument(node, "groups"), context.labels(source)[channel_dim]
    if groups == 1:
        outgoing = context.produce(node, weight, 1, bias)
    else:
        which, _ = _grid(context, incoming, groups, node)
        outgoing = _outputs(context, which, context.produce(node, weight, 1), groups)
        if bias is not None:
            context.tie(outgoing, context.labels(bias)[0], where(node, "adds a bias that cannot shrink"))
    context.consume(node, weight, 0, incoming)
    _finish(node, context, labels, outgoing, (context.parameter(weight, 0), context.parameter(weight, 1)))


@register_rewrite(*_FORWARD, *_TRANSPOSED)
def shrink_groups(node: Node, removal: Removal) -> None:
    """As many groups remain as the channels that remain have room for."""
    weight = argument(node, "weight")
    while weight.op == "call_module":  # a quantizer
        weight = weight.args[0]
    if argument(node, "groups") == 1:
        return
    channel_dim = len(shape_of(node)) - len(shape_of(weight)) + 1
    grouped = node if node.target in _TRANSPOSED else argument(node, "input")
    channels = removal.size(grouped, channel_dim)
    set_argument(node, "groups", channels // removal.parameter_size(str(weight.target), shape_of(weight), 1))


def _all_but_channels(node: Node, context: RuleContext) -> list[Labels | None]:
    """Labels of samples pass; those of positions if the convolution keeps their number."""
    source, weight = argument(node, "input"), argument(node, "weight")
    labels = list(context.labels(source))
    positions = range(len(labels) - len(shape_of(weight)) + 2, len(labels))
    for dim in positions:
        ids = labels[dim]
        if ids is None:
            continue
        stride = argument(node, "stride")
        if node.target in _FORWARD and shape_of(node)[dim] == len(ids) and all(step == 1 for step in stride):
            context.only_open(node, (source, dim), output=[dim])
        else:
            context.freeze(node, [ids], "takes it for positions")
            labels[dim] = None
    return labels


def _finish(
    node: Node,
    context: RuleContext,
    labels: list[Labels | None],
    outgoing: Labels,
    weight_labels: tuple[Labels, Labels],
) -> None:
    """Labels of the output, and what its MACs depend on."""
    channel_dim = len(labels) - len(shape_of(argument(node, "weight"))) + 1
    del labels[channel_dim]
    context.products[node.name] = ((*labels, *weight_labels),)
    labels.insert(channel_dim, outgoing)
    context.set(node, labels)


def _grid(
    context: RuleContext, incoming: Labels | None, groups: int, node: Node
) -> tuple[Labels | None, Labels | None]:
    """Input channels as convolution groups, and positions within a group (which stay equally wide)."""
    columns: tuple[list[Labels], list[Labels]] = ([], [])
    if incoming is not None:
        for axis, ids in context.channels.axes(incoming.reshape(groups, -1), where(node, "reads a single channel")):
            columns[axis].append(ids)
    which, position = (context.channels.conjunction(ids) if ids else None for ids in columns)
    return which, position


def _outputs(context: RuleContext, which: Labels | None, position: Labels, groups: int) -> Labels:
    """Output channels of grouped convolution: a group, and a position within it."""
    if which is None:
        return np.tile(position, groups)
    return context.channels.conjunction([which[:, None], position[None, :]]).reshape(-1)
