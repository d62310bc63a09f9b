# SPDX-License-Identifier: Apache-2.0
"""Operators that move elements without changing them: views, permutations, splits, concatenation."""

import operator
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._groups import FIXED
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._nodes import shape_of, where
from djpq_nncf.channels._registry import Removal, register_channel_rule, register_rewrite
from djpq_nncf.channels.rules._arguments import argument, set_argument

aten = torch.ops.aten

_VIEWS = [aten.view.default, aten.reshape.default, aten._unsafe_view.default]
_SPLITS = [
    aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.tensor_split.indices,
    aten.tensor_split.sections,
]  # fmt: skip


@register_channel_rule(
    *_VIEWS, *_SPLITS, aten.flatten.using_ints, aten.unflatten.int, aten.permute.default, aten.transpose.int,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.expand.default,
    aten.t.default, aten.repeat.default, aten.movedim.int,
    aten.movedim.intlist, aten.swapaxes.default, aten.numpy_T.default, aten.mT.default, aten.tile.default,
    aten.repeat_interleave.self_int, aten.flip.default, aten.clone.default, aten.contiguous.default,
    aten.detach.default, aten.alias.default,
)  # fmt: skip
def movement(node: Node, context: RuleContext) -> None:
    """Labels move with the elements."""
    source = node.args[0]
    assert isinstance(source, Node)
    context.follow(node, source)


@register_channel_rule(aten.constant_pad_nd.default, aten.pad.default)
def padding(node: Node, context: RuleContext) -> None:
    """Channels made up along a padded dimension stay; positions may be padded as they like."""
    source, amounts = argument(node, "self"), list(argument(node, "pad"))
    constant = node.target is aten.constant_pad_nd.default or argument(node, "mode") == "constant"
    labels = list(context.labels(source))
    for position in range(len(amounts) // 2):
        dim = len(labels) - 1 - position
        ids, (before, after) = labels[dim], amounts[2 * position : 2 * position + 2]
        if ids is None or not (before or after):
            continue
        if not constant or min(before, after) < 0:
            context.freeze(node, [ids], "pads or crops the channel dimension")
            labels[dim] = None
            continue
        made_up = context.channels.new(before + after)
        context.freeze(node, [made_up], "pads the channel dimension")
        labels[dim] = np.concatenate([made_up[:before], ids, made_up[before:]])
    context.set(node, labels)


@register_channel_rule(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default)
def made_to_measure(node: Node, context: RuleContext) -> None:
    """Takes type and device from a tensor, and nothing else."""
    context.ignore(*node.all_input_nodes)


@register_channel_rule(aten._assert_tensor_metadata.default)
def assertion(node: Node, context: RuleContext) -> None:
    """Looks at type and device, and sometimes at sizes."""
    if argument(node, "size") is not None or argument(node, "stride") is not None:
        context.freeze_inputs(node, where(node, "insists on a size"))
    context.ignore(*node.all_input_nodes)


@register_channel_rule(aten.slice_scatter.default)
def slice_scatter(node: Node, context: RuleContext) -> None:
    """A stretch of a tensor is replaced by another tensor."""
    source, other, dim = (argument(node, name) for name in ("self", "src", "dim"))
    labels, new = list(context.labels(source)), context.labels(other)
    span = slice(argument(node, "start"), argument(node, "end"), argument(node, "step"))
    along = dim % len(labels)
    for position, ids in enumerate(labels):
        met = ids[span] if ids is not None and position == along else ids
        if context.tie(met, new[position], where(node, "replaces part of it with what cannot shrink")) is None:
            labels[position] = None
    if labels[along] is not None and span.step != 1:
        context.freeze(node, [labels[along]], "replaces every n-th of them")
    context.set(node, labels)


@register_channel_rule(aten.select.int, aten.unbind.int, aten.roll.default)
def selection(node: Node, context: RuleContext) -> None:
    """Entries of a dimension are chosen by their position."""
    source = node.args[0]
    assert isinstance(source, Node)
    chosen = argument(node, "dims" if node.target is aten.roll.default else "dim")
    context.follow(node, source, reorders=[chosen] if isinstance(chosen, int) else chosen)


@register_channel_rule(aten.channel_shuffle.default)
def shuffle(node: Node, context: RuleContext) -> None:
    """Channels change places."""
    context.follow(node, argument(node, "self"), reorders=[1])


@register_channel_rule(aten.slice.Tensor)
def slicing(node: Node, context: RuleContext) -> None:
    """A stretch of channels stays one; every n-th channel is chosen by its position."""
    source, dim = argument(node, "self"), argument(node, "dim")
    context.follow(node, source, reorders=[] if argument(node, "step") == 1 else [dim])


@register_channel_rule(aten.index.Tensor, aten.index_select.default, aten.gather.default)
def lookup(node: Node, context: RuleContext) -> None:
    """Dimensions that are looked into stay; the others pass where they stay in place."""
    source = node.args[0]
    assert isinstance(source, Node)
    labels = context.labels(source)
    if node.target is aten.index.Tensor:
        indices = argument(node, "indices")
        looked_into = [dim for dim, index in enumerate(indices) if index is not None]
    else:
        looked_into = [argument(node, "dim") % len(labels)]
    context.freeze(node, [labels[dim] for dim in looked_into], "looks up any of them")
    result: list[Labels | None] = [None] * len(shape_of(node))
    if node.target is aten.index.Tensor:
        new_dims = len(shape_of(node)) - len(labels) + len(looked_into)
        others = [dim for dim in range(len(labels)) if dim not in looked_into]
        together = looked_into == list(range(looked_into[0], looked_into[-1] + 1))
        start = looked_into[0] if together else 0
        for position, dim in enumerate(others):
            result[position if position < start else position + new_dims] = labels[dim]
    elif node.target is aten.index_select.default:
        result = [None if dim in looked_into else ids for dim, ids in enumerate(labels)]
    else:
        context.freeze(node, labels, "looks up any of them")
    context.set(node, result)


@register_channel_rule(aten.pixel_shuffle.default)
def pixel_shuffle(node: Node, context: RuleContext) -> None:
    """Several input channels become the positions of one."""
    source, factor = argument(node, "self"), argument(node, "upscale_factor")
    labels = list(context.labels(source))
    context.freeze(node, labels[-2:], "takes it for positions")
    labels[-2:] = [None, None]
    ids = labels[-3]
    if ids is not None:
        first, *others = ids.reshape(-1, factor**2).T
        for other in others:
            context.channels.tie(first, other)
        labels[-3] = first
    context.set(node, labels)


@register_channel_rule(aten.pixel_unshuffle.default, aten.im2col.default)
def pixel_unshuffle(node: Node, context: RuleContext) -> None:
    """Positions of one input channel become several channels."""
    source = argument(node, "self")
    *leading, channels, height, width = context.labels(source)
    context.freeze(node, [height, width], "takes it for positions")
    result: list[Labels | None] = [None] * len(shape_of(node))
    result[: len(leading)] = leading
    if channels is not None:
        result[len(leading)] = channels.repeat(shape_of(node)[len(leading)] // len(channels))
    context.set(node, result)


@register_channel_rule(operator.getitem)
def getitem(node: Node, context: RuleContext) -> None:
    """One output of an operator with several."""
    source, position = node.args
    assert isinstance(source, Node) and isinstance(position, int)
    context.take_output(node, source, position)


@register_channel_rule(aten.stack.default)
def stacking(node: Node, context: RuleContext) -> None:
    """Tensors side by side along a new dimension; what meets is tied."""
    parts, rank = argument(node, "tensors"), len(shape_of(node))
    along = argument(node, "dim") % rank
    labels = _meeting(node, context, parts, range(rank - 1))
    labels.insert(along, None)
    context.set(node, labels)


@register_channel_rule(aten.cat.default)
def concatenation(node: Node, context: RuleContext) -> None:
    """Channels follow one another along ``dim`` and are tied along every other dimension."""
    parts = [part for part in argument(node, "tensors") if len(shape_of(part)) == len(shape_of(node))]
    rank = len(shape_of(node))
    along = argument(node, "dim") % rank
    result = _meeting(node, context, parts, [dim for dim in range(rank) if dim != along])
    known = [context.labels(part)[along] for part in parts]
    if any(ids is not None for ids in known):
        pieces = []
        for part, ids in zip(parts, known, strict=True):
            if ids is None:
                ids = context.channels.new(shape_of(part)[along])
                context.freeze(node, [ids], "appends a tensor that cannot shrink")
            pieces.append(ids)
        result.insert(along, np.concatenate(pieces))
    else:
        result.insert(along, None)
    context.set(node, result)


def _meeting(node: Node, context: RuleContext, parts: Sequence[Node], dims: Sequence[int]) -> list[Labels | None]:
    """Labels of the dimensions in which all parts agree."""
    result = []
    for dim in dims:
        ids = context.labels(parts[0])[dim]
        for part in parts[1:]:
            ids = context.tie(ids, context.labels(part)[dim], where(node, "joins it with a tensor that cannot shrink"))
        result.append(ids)
    return result


@register_rewrite(*_VIEWS, aten.expand.default)
def resize_view(node: Node, removal: Removal) -> None:
    """Sizes written into the call, or computed in the graph, follow the channels."""
    name = "implicit" if node.target is None else "size" if node.target is not aten.reshape.default else "shape"
    sizes = list(argument(node, name))
    for dim, size in enumerate(sizes):
        before, after = shape_of(node)[dim], removal.size(node, dim)
        if before == after:
            continue
        if isinstance(size, Node):
            sizes[dim] = _scaled(node, size, after, before)
        elif size != -1:
            sizes[dim] = after
    set_argument(node, name, sizes)


def _scaled(node: Node, size: Node, after: int, before: int) -> Node:
    """A size that depends on the batch and holds channels too."""
    factor = Fraction(after, before)
    with node.graph.inserting_before(node):
        scaled = node.graph.call_function(operator.mul, (size, factor.numerator))
        if factor.denominator > 1:
            scaled.meta["val"] = size.meta["val"] * factor.numerator
            scaled = node.graph.call_function(operator.floordiv, (scaled, factor.denominator))
    scaled.meta["val"] = size.meta["val"] * after // before
    return scaled


@register_rewrite(*_SPLITS)
def resize_split(node: Node, removal: Removal) -> None:
    """Equal parts need not stay equal: every split along channels becomes one with explicit sizes."""
    source = node.args[0]
    assert isinstance(source, Node)
    dim = argument(node, "dim")
    ids = (removal.labels(source) or [None] * len(shape_of(source)))[dim]
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


@register_rewrite(aten.slice.Tensor, aten.slice_scatter.default)
def resize_slice(node: Node, removal: Removal) -> None:
    """A slice of channels begins and ends where its first and last remaining channel do."""
    source, dim = argument(node, "self"), argument(node, "dim")
    ids = (removal.labels(source) or [None] * len(shape_of(source)))[dim]
    if ids is None or (ids == FIXED).all():
        return
    begin, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(len(ids))
    kept = removal.kept(ids)
    set_argument(node, "start", int((kept < begin).sum()))
    set_argument(node, "end", int((kept < stop).sum()))


@register_rewrite(aten.repeat_interleave.self_int)
def count_repetitions_anew(node: Node, removal: Removal) -> None:
    """The size of the output follows from that of the input."""
    set_argument(node, "output_size", None)


@register_rewrite(aten.unflatten.int)
def resize_unflatten(node: Node, removal: Removal) -> None:
    """Sizes of the new dimensions follow the channels."""
    dim, sizes = argument(node, "dim"), list(argument(node, "sizes"))
    first = dim if dim >= 0 else dim + len(shape_of(node)) - len(sizes) + 1
    for offset, size in enumerate(sizes):
        if isinstance(size, int) and size != -1:
            sizes[offset] = removal.size(node, first + offset)
    set_argument(node, "sizes", sizes)


@register_rewrite(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze_as_before(node: Node, removal: Removal) -> None:
    """A dimension of which one channel remains is not squeezed for that."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape = shape_of(source)
    if all(removal.size(source, dim) > 1 or size == 1 for dim, size in enumerate(shape)):
        return
    asked = node.args[1] if len(node.args) > 1 else range(len(shape))
    dims = [asked] if isinstance(asked, int) else [int(dim) for dim in asked]  # type: ignore[union-attr,arg-type]
    node.target = aten.squeeze.dims
    node.args = (source, [dim for dim in dims if shape[dim] == 1])
    node.kwargs = {}
