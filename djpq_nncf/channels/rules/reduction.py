# SPDX-License-Identifier: Apache-2.0
"""Pooling, resizing and reductions over positions."""

import torch
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext, shape_of, where
from djpq_nncf.channels._registry import register_channel_rule
from djpq_nncf.channels.rules._arguments import argument

aten = torch.ops.aten

_POOLS = [
    getattr(aten, f"{kind}{rank}d").default
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool")
    for rank in (1, 2, 3)
]
_RESIZES = [getattr(aten, name).vec for name in ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")]


@register_channel_rule(*_POOLS, *_RESIZES)
def pooling(node: Node, context: RuleContext) -> None:
    """Positions are pooled, channels pass."""
    source = node.all_input_nodes[0]
    labels = context.labels(source)
    positions = shape_of(source)[2:]
    if any(ids is not None for ids in labels[len(labels) - len(positions) :]):
        context.freeze_inputs(node, where(node, "pools over channels"))
        context.set(node, [None] * len(shape_of(node)))
    else:
        context.set(node, labels)


@register_channel_rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
def reduction(node: Node, context: RuleContext) -> None:
    """Reduced dimensions must not hold channels; the others keep theirs."""
    source = argument(node, "self")
    labels = context.labels(source)
    dims = argument(node, "dim")
    dims = range(len(labels)) if not dims else [dims] if isinstance(dims, int) else dims
    reduced = {dim % len(labels) for dim in dims}
    for dim in reduced:
        ids = labels[dim]
        if ids is not None:
            context.channels.freeze(ids, where(node, "reduces over channels"))
    if argument(node, "keepdim"):
        context.set(node, [None if dim in reduced else ids for dim, ids in enumerate(labels)])
    else:
        context.set(node, [ids for dim, ids in enumerate(labels) if dim not in reduced])
