# SPDX-License-Identifier: Apache-2.0
"""Geometry of the chart of a sweep, in percent of its width and height so that its text keeps its size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from djpq_nncf.sweep._front import front
from djpq_nncf.sweep._result import RunOutcome

_MOST_TICKS = 5
_EDGE = 0.08
"""Of the extent, on both sides of the outermost values."""


@dataclass(frozen=True)
class Point:
    """A run: where it is, what it says, and how it is marked (``"best"``, ``"front"`` or ``"other"``)."""

    x: float
    y: float
    label: str
    mark: str


@dataclass(frozen=True)
class Tick:
    """A label on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class SweepChart:
    """What the template draws.

    Attributes:
        points: the runs, best and front last, so that they lie above others.
        line: the front, by BOPs.
        costs, losses: labels of the axes.
        most_bops, most_lost: where the limits are; None if that is outside, or there is none.
        description: the text alternative.
    """

    points: tuple[Point, ...]
    line: tuple[tuple[float, float], ...]
    costs: tuple[Tick, ...]
    losses: tuple[Tick, ...]
    most_bops: float | None
    most_lost: float | None
    description: str


def sweep_chart(
    outcomes: Sequence[RunOutcome],
    best: RunOutcome | None = None,
    *,
    most_lost: float | None = None,
    most_bops: float | None = None,
) -> SweepChart | None:
    """Points lost against BOPs; None if fewer than two runs have an accuracy."""
    judged = [(outcome, outcome.lost) for outcome in outcomes if outcome.lost is not None]
    if len(judged) < 2:
        return None
    on_front = front(outcomes)
    x = _Scale([math.log10(outcome.bops_ratio) for outcome, _ in judged], least=0.2)
    y = _Scale([0.0, *(lost for _, lost in judged)], least=0.1)
    points = [
        Point(x(math.log10(outcome.bops_ratio)), y(lost), _label(outcome, lost), mark)
        for outcome, lost in judged
        for mark in ["best" if outcome is best else "front" if outcome in on_front else "other"]
    ]
    order = ("other", "front", "best")
    return SweepChart(
        points=tuple(sorted(points, key=lambda point: order.index(point.mark))),
        line=tuple((x(math.log10(o.bops_ratio)), y(o.lost)) for o in on_front if o.lost is not None),
        costs=tuple(Tick(x(math.log10(ratio)), f"1/{1 / ratio:.3g}") for ratio in _decades(x.low, x.high)),
        losses=tuple(Tick(y(value), f"{value:g}") for value in _round_values(y.low, y.high)),
        most_bops=x.inside(math.log10(most_bops)) if most_bops is not None and most_bops > 0 else None,
        most_lost=None if most_lost is None else y.inside(most_lost),
        description="The front: " + "; ".join(_label(o, o.lost) for o in on_front if o.lost is not None) + ".",
    )


def _label(outcome: RunOutcome, lost: float) -> str:
    return (
        f"{outcome.name}: {lost:+.2f} points lost at 1/{1 / outcome.bops_ratio:.1f} of the BOPs and "
        f"{outcome.macs_ratio:.1%} of the MACs"
    )


class _Scale:
    """From values to percent of the width from the left, or of the height from the top: there, nothing is lost."""

    def __init__(self, values: Sequence[float], *, least: float) -> None:
        middle, extent = (min(values) + max(values)) / 2, max(max(values) - min(values), least)
        self.low, self.high = middle - (0.5 + _EDGE) * extent, middle + (0.5 + _EDGE) * extent

    def __call__(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def inside(self, value: float) -> float | None:
        return self(value) if self.low <= value <= self.high else None


def _decades(low: float, high: float) -> list[float]:
    """Shares 1/N with round N between powers of ten, about five of them."""
    exponents = range(math.floor(low) - 1, math.ceil(high) + 1)
    for steps in ((1, 1.25, 2, 2.5, 4, 5, 6.25, 8), (1, 2, 5), (1, 2.5), (1,)):
        values = [step * 10.0**exponent for exponent in exponents for step in steps]
        values = [value for value in values if low <= math.log10(value) <= high]
        if len(values) <= _MOST_TICKS:
            return values or [10 ** ((low + high) / 2)]
    return values[:: math.ceil(len(values) / _MOST_TICKS)]


def _round_values(low: float, high: float) -> list[float]:
    """Round numbers within an interval, about five of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(step * factor for factor in (0.5, 1, 2, 5, 10) if (high - low) / (step * factor) <= _MOST_TICKS + 1)
    return [round(i * step, 10) + 0.0 for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
