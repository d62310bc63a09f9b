# SPDX-License-Identifier: Apache-2.0
"""Operators that move elements without computing with them, followed by moving indices instead of values."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from djpq_nncf.channels._labels import Labels

aten = torch.ops.aten

_VIEWS = {aten.view.default, aten._unsafe_view.default}


@dataclass(frozen=True)
class Factor:
    """Channels that live along one dimension of a value, or along several that were one before it was torn apart.

    Attributes:
        dims: the dimensions, ascending.
        ids: array over these dimensions.
    """

    dims: tuple[int, ...]
    ids: Labels


@dataclass(frozen=True)
class Regather:
    """How a moved value comes straight from an earlier one: select along ``dim``, unfold it, permute.

    Attributes:
        root: name of the earlier node.
        dim: the dimension of it that was torn apart.
        positions: indices along ``dim``, as an array over ``target_dims`` of the moved value.
        target_dims: dimensions of the moved value that ``dim`` became, ascending.
        kept_dims: (dimension of the root, dimension of the moved value) for all others, but for dimensions of size
            one that only one of the two has.
    """

    root: str
    dim: int
    positions: Labels
    target_dims: tuple[int, ...]
    kept_dims: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class IndexMap:
    """For each element of a moved value where it was in ``root``: for each dimension there a tensor of indices.

    Attributes:
        root: the earlier value.
        root_shape: its shape for the example.
        root_free: its dimensions whose size is that of the example only for the example.
        coordinates: for each of its dimensions a tensor of the moved value's shape.
    """

    root: Node
    root_shape: tuple[int, ...]
    root_free: frozenset[int]
    coordinates: tuple[Tensor, ...]

    @classmethod
    def identity(cls, root: Node, shape: tuple[int, ...], free: frozenset[int]) -> "IndexMap":
        return cls(root, shape, free, tuple(_line(np.arange(size), (dim,), shape) for dim, size in enumerate(shape)))

    @functools.cached_property
    def regather(self) -> Regather | None:
        """The short way from the root, if there is one: all dimensions but one are whole and at most permuted."""
        shape = self.coordinates[0].shape if self.coordinates else ()
        kept, torn = [], []
        used: list[int] = []
        for dim, index in enumerate(self.coordinates):
            if self.root_shape[dim] == 1:
                continue
            dims = varying_dims(index)
            used += dims
            whole = len(dims) == 1 and index.shape[dims[0]] == self.root_shape[dim]
            if whole and torch.equal(_along(index, dims).reshape(-1), torch.arange(self.root_shape[dim])):
                kept.append((dim, dims[0]))
            else:
                torn.append((dim, dims))
        spanned = all(size == 1 or dim in used for dim, size in enumerate(shape))
        if len(torn) != 1 or len(set(used)) < len(used) or not spanned:
            return None
        ((dim, dims),) = torn
        if dim in self.root_free:
            return None  # channels merged with the batch: positions would be those of the example
        # of size one in the example only, perhaps: they keep their order
        single = [own for own, size in enumerate(self.root_shape) if size == 1]
        left = [target for target in range(len(shape)) if target not in used]
        if len(single) == len(left):
            kept += zip(single, left, strict=True)
        return Regather(self.root.name, dim, _along(self.coordinates[dim], dims).numpy(), tuple(dims), tuple(kept))


def moved(node: Node, before: IndexMap) -> list[IndexMap]:
    """Where the elements of each output of ``node`` were in the root of its input."""
    outputs = [_outputs(_apply(node, index)) for index in before.coordinates]
    return [
        IndexMap(before.root, before.root_shape, before.root_free, tuple(_compact(index) for index in one))
        for one in zip(*outputs, strict=True)
    ]


def follow(
    node: Node, factors: Sequence[Factor], shape: tuple[int, ...], make_constant: Callable[[Node, int], Labels]
) -> list[list[Factor]]:
    """Factors of each output of an operator that only moves elements.

    Args:
        node: the operator.
        factors: those of its input.
        shape: of its input.
        make_constant: gives ids for elements that the operator makes up (padding).
    """
    results: list[list[Factor]] = []
    for factor in factors:
        line = _line(np.arange(1, factor.ids.size + 1).reshape(factor.ids.shape), factor.dims, shape)
        moved_lines = _outputs(_apply(node, line))
        results = results or [[] for _ in moved_lines]
        for result, index in zip(results, moved_lines, strict=True):
            if not index.numel():
                continue
            dims = varying_dims(index)  # none where a single channel is left: without it nothing would be
            grid = _along(index, dims).numpy()
            ids = factor.ids.reshape(-1)[np.maximum(grid, 1) - 1]
            if (grid == 0).any():
                ids = np.where(grid == 0, make_constant(node, 1), ids)
            result.append(Factor(tuple(dims), ids))
    return results


def varying_dims(index: Tensor) -> list[int]:
    """Dimensions along which the entries of a tensor differ."""
    return [
        dim
        for dim in range(index.dim())
        if index.shape[dim] > 1
        and index.stride(dim) != 0
        and not torch.equal(index.narrow(dim, 0, 1).expand_as(index), index)
    ]


def concrete(argument: Any) -> Any:
    """An argument with integer-valued nodes (sizes) replaced by their value for the example batch."""
    return torch.fx.node.map_arg(
        argument, lambda node: node if isinstance(node.meta.get("val"), Tensor) else node.meta["val"]
    )


def _apply(node: Node, value: Tensor) -> Any:
    """The output of ``node`` for another first argument; positions asked for by index tensors are taken as 0."""
    target = aten.reshape.default if node.target in _VIEWS else node.target
    rest = torch.fx.node.map_arg(concrete(node.args[1:]), lambda n: torch.zeros(n.meta["val"].shape, dtype=torch.long))
    assert callable(target)
    return target(value, *rest, **concrete(node.kwargs))


def _outputs(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _line(ids: np.ndarray, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Entries that depend on the position along ``dims`` only, as a tensor of the full shape (without its memory)."""
    sizes = [shape[dim] if dim in dims else 1 for dim in range(len(shape))]
    return torch.from_numpy(np.ascontiguousarray(ids)).reshape(sizes).expand(shape)


def _along(index: Tensor, dims: Sequence[int]) -> Tensor:
    """The entries along some dimensions, at position 0 of all others."""
    for dim in reversed(range(index.dim())):
        if dim not in dims:
            index = index.select(dim, 0)
    return index.contiguous()


def _compact(index: Tensor) -> Tensor:
    """The same tensor with stride 0 along the dimensions on which it does not depend."""
    dims = varying_dims(index)
    small = index
    for dim in range(index.dim()):
        if dim not in dims and index.shape[dim] > 1:
            small = small.narrow(dim, 0, 1)
    return small.contiguous().expand(index.shape)
