# SPDX-License-Identifier: Apache-2.0
"""Operators that move elements without changing them: views, permutations, splits, concatenation."""

import operator
from typing import Any

import torch
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext, concrete, shape_of, where
from djpq_nncf.channels._groups import FIXED
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._registry import Removal, register_channel_rule, register_rewrite
from djpq_nncf.channels.rules._arguments import argument, set_argument

aten = torch.ops.aten

_VIEWS = [aten.view.default, aten.reshape.default, aten._unsafe_view.default]
_SPLITS = [aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default]


@register_channel_rule(
    *_VIEWS, *_SPLITS, aten.flatten.using_ints, aten.unflatten.int, aten.permute.default, aten.transpose.int,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.expand.default,
    aten.select.int, aten.t.default, aten.unbind.int, aten.constant_pad_nd.default, aten.pad.default,
    aten.repeat.default, aten.movedim.int,
)  # fmt: skip
def movement(node: Node, context: RuleContext) -> None:
    """Labels move with the elements."""
    source = node.args[0]
    assert isinstance(source, Node)
    target = aten.reshape.default if node.target in _VIEWS else node.target
    rest, named = concrete(node.args[1:]), concrete(node.kwargs)

    def move(index: torch.Tensor) -> Any:
        assert callable(target)
        return target(index, *rest, **named)

    context.follow(node, source, move)


@register_channel_rule(aten.slice.Tensor)
def slicing(node: Node, context: RuleContext) -> None:
    """A stretch of channels may shrink, every n-th channel may not."""
    source, dim = argument(node, "self"), argument(node, "dim")
    ids = context.labels(source)[dim]
    if ids is not None and argument(node, "step") != 1:
        context.channels.freeze(ids, where(node, "selects every n-th channel"))
    movement(node, context)


@register_channel_rule(operator.getitem)
def getitem(node: Node, context: RuleContext) -> None:
    """One output of an operator with several."""
    source, position = node.args
    assert isinstance(source, Node) and isinstance(position, int)
    values = context.values.get(source)
    if isinstance(values, list):
        context.set(node, values[position])


@register_channel_rule(aten.cat.default)
def concatenation(node: Node, context: RuleContext) -> None:
    """Channels follow one another along ``dim`` and are tied along every other dimension."""
    parts = argument(node, "tensors")
    rank = len(shape_of(node))
    along = argument(node, "dim") % rank
    result: list[Labels | None] = []
    for dim in range(rank):
        known = [context.labels(part)[dim] for part in parts]
        present = [ids for ids in known if ids is not None]
        if not present:
            result.append(None)
        elif dim == along:
            pieces = []
            for part, ids in zip(parts, known, strict=True):
                if ids is None:
                    ids = context.channels.new(shape_of(part)[dim])
                    context.channels.freeze(ids, where(node, "appends a tensor that cannot shrink"))
                pieces.append(ids)
            result.append(torch.cat([torch.from_numpy(piece) for piece in pieces]).numpy())
        else:
            for ids in present:
                context.channels.tie(present[0], ids)
                if len(present) < len(known):
                    context.channels.freeze(ids, where(node, "joins it with a tensor that cannot shrink"))
            result.append(present[0])
    context.set(node, result)


@register_rewrite(*_VIEWS, aten.expand.default)
def resize_view(node: Node, removal: Removal) -> None:
    """Sizes written into the call follow the channels."""
    name = "implicit" if node.target is None else "size" if node.target is not aten.reshape.default else "shape"
    sizes = list(argument(node, name))
    labels = removal.labels(node)
    for dim, ids in enumerate(labels):
        if ids is not None and isinstance(sizes[dim], int) and sizes[dim] != -1:
            sizes[dim] = len(removal.kept(ids))
    set_argument(node, name, sizes)


@register_rewrite(*_SPLITS)
def resize_split(node: Node, removal: Removal) -> None:
    """Equal parts need not stay equal: every split along channels becomes one with explicit sizes."""
    source = node.args[0]
    assert isinstance(source, Node)
    dim = argument(node, "dim")
    ids = removal.labels(source)[dim] if removal.labels(source) else None
    if ids is None or (ids == FIXED).all():
        return
    sizes, start = [], 0
    for part in node.meta["val"]:
        size = int(part.shape[dim])
        sizes.append(len(removal.kept(ids[start : start + size])))
        start += size
    node.target = aten.split_with_sizes.default
    node.args = (source, sizes, dim)
    node.kwargs = {}


@register_rewrite(aten.slice.Tensor)
def resize_slice(node: Node, removal: Removal) -> None:
    """A slice of channels begins and ends where its first and last remaining channel do."""
    source, dim = argument(node, "self"), argument(node, "dim")
    ids = removal.labels(source)[dim] if removal.labels(source) else None
    if ids is None or (ids == FIXED).all():
        return
    begin, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(len(ids))
    kept = removal.kept(ids)
    node.args = (source, dim, int((kept < begin).sum()), int((kept < stop).sum()))
    node.kwargs = {}


@register_rewrite(aten.unflatten.int)
def resize_unflatten(node: Node, removal: Removal) -> None:
    """Sizes of the new dimensions follow the channels."""
    labels, dim, sizes = removal.labels(node), argument(node, "dim"), list(argument(node, "sizes"))
    first = dim if dim >= 0 else dim + len(labels) - len(sizes) + 1
    for offset, ids in enumerate(labels[first : first + len(sizes)]):
        if ids is not None and sizes[offset] != -1:
            sizes[offset] = len(removal.kept(ids))
    set_argument(node, "sizes", sizes)


@register_rewrite(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze_as_before(node: Node, removal: Removal) -> None:
    """A dimension of which one channel remains is not squeezed for that."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape, labels = shape_of(source), removal.labels(source)
    if all(ids is None or len(removal.kept(ids)) > 1 for ids in labels):
        return
    asked = node.args[1] if len(node.args) > 1 else range(len(shape))
    dims = [asked] if isinstance(asked, int) else [int(dim) for dim in asked]  # type: ignore[union-attr,arg-type]
    node.target = aten.squeeze.dims
    node.args = (source, [dim for dim in dims if shape[dim] == 1])
    node.kwargs = {}
