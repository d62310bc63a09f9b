# SPDX-License-Identifier: Apache-2.0
"""Geometry of the line charts: from series of numbers to places in an SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
_MOST_POINTS = 160
_MOST_TICKS = 6
_LEAST_TICKS = 3
_LEAST = 1e-30
"""Of a logarithmic scale; what is less is not shown."""

Series = Sequence[tuple[float, float]]
"""(x, y), by x."""


@dataclass(frozen=True)
class Tick:
    """A label on an axis: where, in SVG units, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A series: its name, its place among the colours, its path, and the points one can hover."""

    name: str
    style: str
    path: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Level:
    """A value to compare with, over the whole width."""

    name: str
    value: float


@dataclass(frozen=True)
class ValueTable:
    """The values one can hover, for those who cannot: of each step one for each line."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LineChart:
    """What the template draws.

    Attributes:
        title: of the chart.
        lines: the series.
        x_ticks, y_ticks: of the axes.
        freeze: where the freeze was; None if that is outside.
        description: the text alternative.
        table: the values.
    """

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    freeze: float | None
    description: str
    table: ValueTable


def line_chart(
    title: str,
    series: Mapping[str, Series],
    *,
    axis: tuple[float, float],
    unit: str = "",
    logarithmic: bool = False,
    freeze: float | None = None,
    level: Level | None = None,
    dashed: Sequence[str] = (),
) -> LineChart | None:
    """A chart of several series over the same axis; None if none has two points.

    Args:
        title: of the chart.
        series: by name. Values that are not finite, and with ``logarithmic`` those that are not positive, are left out.
        axis: ends of x.
        unit: behind the values, such as ``" %"``.
        logarithmic: scale of y.
        freeze: x at which the network was frozen.
        level: what to compare with.
        dashed: names of the series that say what was asked for.
    """
    drawable = {
        name: [(x, y) for x, y in values if math.isfinite(y) and (y > _LEAST or not logarithmic)]
        for name, values in series.items()
    }
    usable = {name: _thin(values) for name, values in drawable.items() if len(values) > 1}
    if not usable:
        return None
    ys = [math.log10(y) if logarithmic else y for values in usable.values() for _, y in values]
    ys += [] if level is None else [level.value]
    x_scale = _Scale(*axis, LEFT, WIDTH - RIGHT)
    margin = 0.05 * (max(ys) - min(ys)) or 0.05 * abs(ys[0]) or 0.05
    y_scale = _Scale(min(ys) - margin, max(ys) + margin, HEIGHT - BOTTOM, TOP)

    def place(x: float, y: float) -> tuple[float, float]:
        return x_scale(x), y_scale(math.log10(y) if logarithmic else y)

    def told(value: float) -> str:
        return f"{format_value(value)}{unit}"

    lines = []
    for number, (name, values) in enumerate(usable.items()):
        points = tuple((*place(x, y), f"{name} {told(y)}, step {x:g}") for x, y in values)
        path = " ".join(f"{x},{y}" for x, y, _ in points)
        lines.append(Line(name, "asked", path, ()) if name in dashed else Line(name, f"line{number}", path, points))
    described = [f"{name} from {told(values[0][1])} to {told(values[-1][1])}" for name, values in usable.items()]
    if level is not None:
        at = y_scale(level.value)
        name = f"{level.name} {told(level.value)}"
        lines.append(Line(name, "asked", f"{LEFT},{at} {WIDTH - RIGHT},{at}", ()))
        described.append(name)
    if freeze is not None:
        described.append(f"freeze at step {freeze:g}")
    values_at = _decades(y_scale.low, y_scale.high) if logarithmic else round_values(y_scale.low, y_scale.high)
    return LineChart(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple(Tick(x_scale(v), f"{v:g}") for v in round_values(*axis)),
        y_ticks=tuple(Tick(y_scale(math.log10(v) if logarithmic else v), told(v)) for v in values_at),
        freeze=None if freeze is None or not axis[0] <= freeze <= axis[1] else x_scale(freeze),
        description="; ".join(described),
        table=_table(usable, told),
    )


def _table(series: Mapping[str, Series], told: Callable[[float], str]) -> ValueTable:
    by_step: dict[float, dict[str, str]] = {}
    for name, values in series.items():
        for x, y in values:
            by_step.setdefault(x, {})[name] = told(y)
    rows = ((f"{x:g}", *(found.get(name, "-") for name in series)) for x, found in sorted(by_step.items()))
    return ValueTable(("step", *series), tuple(rows))


def round_values(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within an interval."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def format_value(value: float) -> str:
    """Three significant digits, without an exponent where people read it so."""
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2e}"


def _decades(low: float, high: float) -> list[float]:
    """Round numbers between powers of ten: steps of 1, 2, 5, coarser over many decades and finer within one."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        values = [s * 10.0**d for d in exponents for s in steps if low <= d + math.log10(s) <= high]
        if len(values) <= _MOST_TICKS:
            break
    if len(values) < _LEAST_TICKS:
        return round_values(10**low, 10**high)
    return values[:: math.ceil(len(values) / _MOST_TICKS)]


def _thin(values: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most so many points, the last among them: a page should stay small."""
    if len(values) <= _MOST_POINTS:
        return values
    stride = math.ceil(len(values) / _MOST_POINTS)
    chosen = list(values[::stride])
    return chosen if chosen[-1] == values[-1] else [*chosen, values[-1]]


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high
        self._start, self._factor = start, (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return round(self._start + (value - self.low) * self._factor, 1)
