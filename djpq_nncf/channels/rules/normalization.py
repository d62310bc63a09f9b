# SPDX-License-Identifier: Apache-2.0
"""Normalisation: of every channel by itself, or with statistics over channels."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._nodes import shape_of, where
from djpq_nncf.channels._registry import Removal, register_channel_rule, register_rewrite
from djpq_nncf.channels.rules._arguments import argument, set_argument

aten = torch.ops.aten

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
_CANNOT_SHRINK = "scales it with what cannot shrink"


@register_channel_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(node: Node, context: RuleContext) -> None:
    """The channels of dimension 1 pass, and the module's vectors run over them."""
    (source,) = node.all_input_nodes
    labels = list(context.labels(source))
    assert node.graph.owning_module is not None
    module = node.graph.owning_module.get_submodule(str(node.target))
    for name in _PER_CHANNEL:
        vector = getattr(module, name)
        if vector is not None:
            ids = context.module_parameter(f"{node.target}.{name}", vector.shape)
            labels[1] = context.tie(labels[1], ids, where(node, _CANNOT_SHRINK))
    if getattr(module, "running_mean", None) is None:
        context.freeze(node, [labels[0], *labels[2:]], "takes statistics over it")
    context.set(node, labels)


@register_channel_rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(node: Node, context: RuleContext) -> None:
    """Statistics are taken over the last dimensions, for open channels only."""
    source, normalized = node.args[0], argument(node, "normalized_shape")
    assert isinstance(source, Node)
    labels = list(context.labels(source))
    first = len(labels) - len(normalized)
    _scale(node, context, labels, range(first, len(labels)))
    if any(ids is not None for ids in labels[first:]):
        dims = range(first, len(labels))
        scales = [(value, dim - first) for value in node.all_input_nodes[1:] for dim in dims]
        context.only_open(node, *((source, dim) for dim in dims), *scales, output=dims)
    context.set(node, labels)


@register_channel_rule(aten.group_norm.default)
def group_norm(node: Node, context: RuleContext) -> None:
    """Groups stay, and stay equally wide, unless every channel is a group of its own."""
    source, groups = argument(node, "input"), argument(node, "num_groups")
    labels = list(context.labels(source))
    ids = labels[1]
    related = [dim for dim in range(2, len(labels)) if labels[dim] is not None]
    if ids is not None and groups < len(ids):
        for axis, along in context.channels.axes(ids.reshape(groups, -1), where(node, "has one channel a group")):
            if axis == 0:
                context.freeze(node, [along], "normalises groups of them")
        related.insert(0, 1)
    _scale(node, context, labels, [1])
    if related:
        scales = [(value, 0) for value in node.all_input_nodes[1:] if 1 in related]
        context.only_open(node, *((source, dim) for dim in related), *scales, output=related)
    context.set(node, labels)


@register_channel_rule(aten.instance_norm.default)
def instance_norm(node: Node, context: RuleContext) -> None:
    """Every channel is normalised by itself."""
    source = argument(node, "input")
    labels = list(context.labels(source))
    _scale(node, context, labels, [1], names=_PER_CHANNEL)
    related = [dim for dim in range(2, len(labels)) if labels[dim] is not None]
    if related:
        context.only_open(node, *((source, dim) for dim in related), output=related)
    context.set(node, labels)


@register_rewrite(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def shrink_batch_norm(node: Node, removal: Removal) -> None:
    """``num_features`` follows the channels (the vectors themselves are sliced with all other parameters)."""
    assert node.graph.owning_module is not None
    module = node.graph.owning_module.get_submodule(str(node.target))
    assert isinstance(module, _BatchNorm)
    module.num_features = removal.size(node, 1)


@register_rewrite(aten.layer_norm.default, aten.rms_norm.default)
def shrink_layer_norm(node: Node, removal: Removal) -> None:
    """The normalised shape follows the channels."""
    shape = list(argument(node, "normalized_shape"))
    rank = len(shape_of(node))
    set_argument(node, "normalized_shape", [removal.size(node, rank - len(shape) + i) for i in range(len(shape))])


@register_rewrite(aten.group_norm.default)
def shrink_group_norm(node: Node, removal: Removal) -> None:
    """Where every channel is a group, as many groups remain as channels."""
    if argument(node, "num_groups") == shape_of(node)[1]:
        set_argument(node, "num_groups", removal.size(node, 1))


def _scale(
    node: Node,
    context: RuleContext,
    labels: list[Labels | None],
    dims: Sequence[int],
    names: Sequence[str] = ("weight", "bias"),
) -> None:
    """Learned vectors (or tensors) of the normalisation run over these dimensions."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for name in (d.name for d in node.target._schema.arguments if d.name in names):
        value = argument(node, name)
        if isinstance(value, Node):
            for ids, dim in zip(context.labels(value), dims, strict=True):
                labels[dim] = context.tie(labels[dim], ids, where(node, _CANNOT_SHRINK))
