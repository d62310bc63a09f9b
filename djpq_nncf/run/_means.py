# SPDX-License-Identifier: Apache-2.0
"""Means of what the steps of an epoch logged."""

from torch import Tensor


class Means:
    """Collects scalars by name; tensors stay where they are until the epoch is over, so that a GPU need not wait."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, **scalars: float | Tensor) -> None:
        """After each step."""
        for name, value in scalars.items():
            plain = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + plain
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means; begins anew."""
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means
