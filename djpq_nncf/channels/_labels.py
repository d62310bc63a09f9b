# SPDX-License-Identifier: Apache-2.0
"""Channel labels: which index of which tensor dimension is which channel, and which channels are one."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""One channel id for each index of a tensor dimension."""

TensorLabels = tuple[Labels | None, ...]
"""For each dimension of a tensor its labels, or None where nothing can be removed along it."""


class ChannelSet:
    """Channels, the ties between them (union-find) and the reasons why some of them must stay."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> Labels:
        """``count`` fresh channels."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, channel: int) -> int:
        """The representative of the set of tied channels that ``channel`` belongs to."""
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def roots(self, labels: Labels) -> Labels:
        """The representatives of ``labels``, elementwise."""
        return np.fromiter((self.root(int(c)) for c in labels), dtype=np.int64, count=len(labels))

    def tie(self, a: Labels, b: Labels) -> None:
        """Channels ``a[i]`` and ``b[i]`` are kept or removed together."""
        for first, second in zip(a.tolist(), b.tolist(), strict=True):
            keep, drop = sorted((self.root(first), self.root(second)))
            if keep != drop:
                self._parent[drop] = keep

    def freeze(self, labels: Labels, reason: str) -> None:
        """The channels stay, because of ``reason``; the first reason given is the one reported."""
        for channel in np.unique(labels).tolist():
            self._frozen.setdefault(channel, reason)

    def frozen_roots(self) -> dict[int, str]:
        """Representatives of the sets that must stay, with the reason of their first frozen channel."""
        reasons: dict[int, str] = {}
        for channel, reason in self._frozen.items():
            reasons.setdefault(self.root(channel), reason)
        return reasons


def labelled_dims(labels: TensorLabels) -> list[int]:
    """The dimensions along which channels are known."""
    return [dim for dim, ids in enumerate(labels) if ids is not None]


def all_labels(labels: Iterable[Labels | None]) -> Labels:
    """All channel ids among ``labels``, once each."""
    present = [ids for ids in labels if ids is not None]
    return np.unique(np.concatenate(present)) if present else np.empty(0, dtype=np.int64)
