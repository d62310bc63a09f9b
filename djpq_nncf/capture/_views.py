# SPDX-License-Identifier: Apache-2.0
"""Writes a value back through a view: into the tensor that was viewed."""

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


@dataclass(frozen=True)
class View:
    """What is needed to write ``value`` back into the tensor that was viewed."""

    graph: fx.Graph
    base: fx.Node
    value: fx.Node
    args: tuple[Any, ...]
    same_shape: bool


def _scatter(op: torch._ops.OpOverload) -> Callable[[View], fx.Node | None]:
    return lambda v: v.graph.call_function(op, (v.base, v.value, *v.args))


def _same_order(v: View) -> fx.Node:
    """Views that keep the order of the elements: view, flatten, unsqueeze, ..."""
    return v.value if v.same_shape else v.graph.call_function(aten.reshape_as.default, (v.value, v.base))


def _same_shape(v: View) -> fx.Node | None:
    """Views that repeat elements, where there is nothing to repeat."""
    return v.value if v.same_shape else None


def _undo_narrow(v: View) -> fx.Node:
    dim, start, length = v.args
    end: Any
    if isinstance(start, fx.Node) or isinstance(length, fx.Node):
        end = v.graph.call_function(operator.add, (start, length))
    else:
        # the end of the dimension has no negative index
        end = sys.maxsize if start < 0 == start + length else start + length
    return v.graph.call_function(aten.slice_scatter.default, (v.base, v.value, dim, start, end))


def _undo_movedim(v: View) -> fx.Node:
    source, destination = v.args
    overload = aten.movedim.int if isinstance(source, int) else aten.movedim.intlist
    return v.graph.call_function(overload, (v.value, destination, source))


def _undo_transpose(v: View) -> fx.Node:
    return v.graph.call_function(aten.transpose.int, (v.value, *v.args))


def _undo_permute(v: View) -> fx.Node:
    rank = len(v.args[0])
    dims = [dim % rank for dim in v.args[0]]
    return v.graph.call_function(aten.permute.default, (v.value, [dims.index(i) for i in range(rank)]))


_INVERSES: dict[Any, Callable[[View], fx.Node | None]] = {
    aten.slice: _scatter(aten.slice_scatter.default),
    aten.select: _scatter(aten.select_scatter.default),
    aten.diagonal: _scatter(aten.diagonal_scatter.default),
    aten.transpose: _undo_transpose,
    aten.swapaxes: _undo_transpose,
    aten.narrow: _undo_narrow,
    aten.movedim: _undo_movedim,
    aten.mT: lambda v: v.graph.call_function(aten.mT.default, (v.value,)),
    **dict.fromkeys((aten.expand, aten.expand_as, aten.broadcast_to), _same_shape),
    aten.t: lambda v: v.graph.call_function(aten.t.default, (v.value,)),
    aten.permute: _undo_permute,
    **dict.fromkeys(
        (
            aten.view,
            aten.reshape,
            aten.view_as,
            aten.reshape_as,
            aten.flatten,
            aten.unflatten,
            aten.squeeze,
            aten.unsqueeze,
            aten.alias,
            aten.detach,
            aten.contiguous,
            aten.to,
        ),
        _same_order,
    ),
}


def inverse_of(view: fx.Node) -> Callable[[View], fx.Node | None] | None:
    """What undoes a view, if anything does."""
    # the same storage as another type
    return None if view.target is aten.view.dtype else _INVERSES.get(getattr(view.target, "overloadpacket", None))
