# SPDX-License-Identifier: Apache-2.0
"""Channel ids, the ties between them, and ids that stand for several channels at once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""One channel id for each index of a tensor dimension."""

TensorLabels = tuple[Labels | None, ...]
"""For each dimension of a tensor its labels, or None where nothing can be removed along it."""

_DEPTH = 6  # of conjunctions of conjunctions; where it is more, a grid gets channels of its own
_NONE = -1


class ChannelSet:
    """Channels, the ties between them (union-find over arrays) and the reasons why some of them must stay.

    An id may be a *conjunction* of two others: it stands for something that remains exactly if both do, as row
    ``h * width + d`` of a value projection remains if head ``h`` and width ``d`` do.
    """

    def __init__(self) -> None:
        self._count = 0
        self._parent = np.empty(1024, dtype=np.int64)
        self._parts = np.empty((1024, 2), dtype=np.int64)
        self._frozen: list[tuple[Labels, str]] = []

    def __len__(self) -> int:
        return self._count

    def new(self, count: int) -> Labels:
        """``count`` fresh channels."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            size = max(2 * len(self._parent), self._count)
            self._parent = np.resize(self._parent, size)
            self._parts = np.resize(self._parts, (size, 2))
        ids = np.arange(start, self._count, dtype=np.int64)
        self._parent[start : self._count] = ids
        self._parts[start : self._count] = _NONE
        return ids

    def roots(self, ids: Labels) -> Labels:
        """The representatives of the sets of tied channels that ``ids`` belong to, elementwise."""
        found = self._parent[ids]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                break
            found = further
        self._parent[ids] = found
        return found

    def tie(self, a: Labels, b: Labels) -> None:
        """What ``a[i]`` and ``b[i]`` stand for is kept or removed together."""
        a, b = np.broadcast_arrays(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        while True:
            first, second = self.roots(a), self.roots(b)
            differ = first != second
            if not differ.any():
                return
            a, b = first[differ], second[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            np.minimum.at(self._parent, high, low)
            self._hand_over_parts(np.unique(high))

    def conjunction(self, columns: Sequence[Labels]) -> Labels:
        """Ids (fresh, unless there is one column) that remain where all of their parts do; columns broadcast."""
        result = columns[-1]
        for column in reversed(columns[:-1]):
            first, second = np.broadcast_arrays(column, result)
            result = self.new(first.size).reshape(first.shape)
            self._parts[result] = np.stack([first, second], axis=-1)
        return result

    def axes(self, ids: Labels, reason: str) -> list[tuple[int, Labels]]:
        """Let what remains of a grid of ids be a grid again: (axis, ids along it), several for one axis at times.

        What varies along one axis only is left as it is; for anything else each axis gets channels of its own.
        A channel without which nothing of the grid would be left stays, for ``reason``.
        """
        result: list[tuple[int, Labels]] = []
        for column in self._columns(ids):
            varying = varying_axes(column)
            if len(varying) > 1:
                fresh = [self.new(column.shape[axis]) for axis in varying]
                shaped = [
                    new.reshape([-1 if axis == own else 1 for axis in range(column.ndim)])
                    for own, new in zip(varying, fresh, strict=True)
                ]
                self.tie(column, self.conjunction(shaped))
                result += zip(varying, fresh, strict=True)
            elif varying:
                (axis,) = varying
                result.append((axis, np.moveaxis(column, axis, 0).reshape(column.shape[axis], -1)[:, 0]))
            elif column.size:
                self.freeze(column.reshape(-1)[:1], reason)
        return result

    def leaves(self, ids: Labels) -> Labels:
        """[..., k] the channels that each id stands for, -1 where there are fewer than k."""
        finished: list[Labels] = []
        pending = [self.roots(ids)]
        while pending:
            column = pending.pop(0)
            parts = self._parts[column]
            composed = (column >= 0) & (parts[..., 0] >= 0)
            if not composed.any():
                finished.append(column)
                continue
            for side in (0, 1):
                part = np.where(composed, parts[..., side], _NONE if side else column)
                pending.append(np.where(part >= 0, self.roots(np.maximum(part, 0)), _NONE))
        return np.stack(finished, axis=-1)

    def freeze(self, ids: Labels, reason: str) -> None:
        """The channels stay, because of ``reason``; the first reason given is the one reported."""
        if ids.size:
            self._frozen.append((np.unique(ids), reason))

    def frozen_leaves(self) -> tuple[Labels, list[str]]:
        """For every channel (representatives only) the index of the first reason why it must stay or -1; reasons."""
        self._break_cycles()
        reasons = list(dict.fromkeys(reason for _, reason in self._frozen))
        position = {reason: index for index, reason in enumerate(reasons)}
        first = np.full(self._count, _NONE, dtype=np.int64)
        for ids, reason in self._frozen:
            leaves = self.leaves(ids)
            leaves = leaves[leaves >= 0]
            first[leaves] = np.where(first[leaves] < 0, position[reason], first[leaves])
        return first, reasons

    def _hand_over_parts(self, absorbed: Labels) -> None:
        """Of two tied conjunctions the parts are tied, in their order (sound, if not always the weakest tie)."""
        absorbed = absorbed[self._parts[absorbed, 0] >= 0]
        if not absorbed.size:
            return
        heirs = self.roots(absorbed)
        without = self._parts[heirs, 0] < 0
        self._parts[heirs[without]] = self._parts[absorbed[without]]
        for side in (0, 1):
            self.tie(self._parts[absorbed, side], self._parts[self.roots(heirs), side])

    def _columns(self, ids: Labels, depth: int = 0) -> list[Labels]:
        """A grid of ids as grids of their parts, as far as all of them have parts."""
        roots = self.roots(ids)
        if depth < _DEPTH and roots.size and (self._parts[roots, 0] >= 0).all():
            return [c for side in (0, 1) for c in self._columns(self._parts[roots, side], depth + 1)]
        return [roots]

    def _break_cycles(self) -> None:
        """A conjunction tied to a part of itself means that the other part never goes: keep all of it."""
        ids = np.arange(self._count, dtype=np.int64)
        composed = np.unique(self.roots(ids))
        composed = composed[self._parts[composed, 0] >= 0]
        while composed.size:
            open_parts = np.isin(self.roots(self._parts[composed].reshape(-1)).reshape(-1, 2), composed).any(axis=1)
            if open_parts.all():
                parts = self._parts[composed].reshape(-1)
                self._parts[composed] = _NONE
                self._frozen.insert(0, (np.concatenate([composed, parts]), "its channels depend on themselves"))
                return
            composed = composed[open_parts]


def varying_axes(grid: Labels) -> list[int]:
    """Axes along which the entries of an array differ."""
    return [
        axis for axis in range(grid.ndim) if grid.shape[axis] > 1 and not (grid == np.take(grid, [0], axis=axis)).all()
    ]


def all_labels(labels: Sequence[Labels | None]) -> Labels:
    """All channel ids among ``labels``, once each."""
    present = [ids.reshape(-1) for ids in labels if ids is not None]
    return np.unique(np.concatenate(present)) if present else np.empty(0, dtype=np.int64)
