# SPDX-License-Identifier: Apache-2.0
"""Pooling, resizing, reductions, and what relates the entries of one dimension to each other."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._registry import register_channel_rule
from djpq_nncf.channels.rules._arguments import argument

aten = torch.ops.aten

_POOLS = [
    getattr(aten, f"{kind}{rank}d").default
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool")
    for rank in (1, 2, 3)
]
_POOLS_WITH_INDICES = [
    getattr(aten, f"{kind}{rank}d{suffix}").default
    for kind, suffix in (("max_pool", "_with_indices"), ("adaptive_max_pool", ""))
    for rank in (1, 2, 3)
    if hasattr(aten, f"{kind}{rank}d{suffix}")
]
_RESIZES = [
    getattr(packet, overload)
    for mode in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d")
    for packet in [getattr(aten, f"upsample_{mode}")]
    for overload in packet.overloads()
    if "out" not in overload
]
_REDUCTIONS = [
    aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.var.dim, aten.var.correction,
    aten.std.dim, aten.std.correction, aten.norm.ScalarOpt_dim, aten.linalg_vector_norm.default, aten.logsumexp.default,
    aten.prod.dim_int, aten.mean.default, aten.sum.default, aten.max.default, aten.min.default,
]  # fmt: skip
_VARIANCES = {aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction}
_ALONG = [aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default]


@register_channel_rule(*_POOLS, *_RESIZES, aten.grid_sampler.default)
def pooling(node: Node, context: RuleContext) -> None:
    """Positions are pooled, channels pass."""
    context.set(node, _without_positions(node, context))


@register_channel_rule(*_POOLS_WITH_INDICES)
def pooling_with_indices(node: Node, context: RuleContext) -> None:
    """As pooling; the second output says where the values were."""
    labels = _without_positions(node, context)
    context.set_several(node, [labels, labels])


@register_channel_rule(*_REDUCTIONS)
def reduction(node: Node, context: RuleContext) -> None:
    """Of channels along reduced dimensions the open ones are reduced; other dimensions keep theirs."""
    source = node.args[0]
    assert isinstance(source, Node)
    labels = context.labels(source)
    asked = _argument_or(node, "dim", None)
    dims: Iterable[int] = [asked] if isinstance(asked, int) else asked or range(len(labels))
    reduced = {dim % len(labels) for dim in dims}
    if node.target in _VARIANCES and _argument_or(node, "correction", 1) != 0 and _argument_or(node, "unbiased", True):
        context.freeze(node, [labels[dim] for dim in reduced], "needs at least two of them")
    elif any(labels[dim] is not None for dim in reduced):
        context.only_open(node, *((source, dim) for dim in sorted(reduced)))
    if _argument_or(node, "keepdim", False):
        context.set(node, [None if dim in reduced else ids for dim, ids in enumerate(labels)])
    else:
        context.set(node, [ids for dim, ids in enumerate(labels) if dim not in reduced])


@register_channel_rule(aten.max.dim, aten.min.dim, aten.argmax.default, aten.argmin.default)
def extremum(node: Node, context: RuleContext) -> None:
    """Says which entry it is, so that channels along the dimension must stay."""
    source, dim = node.args[0], _argument_or(node, "dim", None)
    assert isinstance(source, Node)
    labels = list(context.labels(source))
    if dim is None:
        context.freeze(node, labels, "says which of them it is")
        return
    context.freeze(node, [labels[dim]], "says which of them it is")
    rest = [None if own == dim % len(labels) else ids for own, ids in enumerate(labels)]
    if not _argument_or(node, "keepdim", False):
        del rest[dim]
    if isinstance(node.meta["val"], (list, tuple)):
        context.set_several(node, [rest, rest])
    else:
        context.set(node, rest)


@register_channel_rule(*_ALONG)
def along_dimension(node: Node, context: RuleContext) -> None:
    """Entries along a dimension are related to each other: of channels, the open ones."""
    source, dim = node.args[0], argument(node, "dim")
    assert isinstance(source, Node)
    labels = context.labels(source)
    if labels[dim] is not None:
        context.only_open(node, (source, dim), output=[dim])
    context.set(node, labels)


def _without_positions(node: Node, context: RuleContext) -> list[Labels | None]:
    source = node.all_input_nodes[0]
    labels = list(context.labels(source))
    spatial = next((int(letter) for letter in str(node.target) if letter in "123"), len(labels) - 2)
    for dim in range(len(labels) - spatial, len(labels)):
        if labels[dim] is not None:
            context.freeze(node, [labels[dim]], "takes it for positions")
            labels[dim] = None
    return labels


def _argument_or(node: Node, name: str, default: Any) -> Any:
    try:
        return argument(node, name)
    except KeyError:
        return default
