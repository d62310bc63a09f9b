# SPDX-License-Identifier: Apache-2.0
"""The front of a sweep as one HTML page that needs no network."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from djpq_nncf.errors import RunError
from djpq_nncf.sweep._front import front
from djpq_nncf.sweep._result import RunOutcome

_WIDTH, _HEIGHT, _MARGIN = 640, 360, 56
_TICKS = (1, 2, 5)


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    label: str
    on_front: bool


@dataclass(frozen=True)
class _Tick:
    at: float
    label: str


def write_sweep_page(outcomes: Sequence[RunOutcome], folder: Path) -> Path:
    """Write ``sweep.html``: points lost against BOPs, the front, and the table.

    Raises:
        RunError: the folder cannot be written to.
    """
    best = front(outcomes)
    judged = [outcome for outcome in outcomes if outcome.lost is not None]
    environment = Environment(loader=PackageLoader("djpq_nncf.sweep", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("sweep.html.jinja").render(
        title=f"Sweep {folder.name}",
        outcomes=sorted(outcomes, key=lambda outcome: outcome.bops_ratio),
        front=best,
        chart=_chart(judged, best) if len(judged) > 1 else None,
        width=_WIDTH,
        height=_HEIGHT,
        margin=_MARGIN,
    )
    path = folder / "sweep.html"
    partial = path.with_name(".sweep.html.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(f"Cannot write {path}: {error.strerror or error}. Free some space and run it again.") from error
    return path


def _chart(judged: Sequence[RunOutcome], best: Sequence[RunOutcome]) -> dict[str, object]:
    costs = [math.log10(outcome.bops_ratio) for outcome in judged]
    losses = [outcome.lost or 0.0 for outcome in judged]
    left, right = min(costs) - 0.1, max(costs) + 0.1
    low, high = min(0.0, *losses), max(0.0, *losses)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

    def x(ratio: float) -> float:
        return round(_MARGIN + (math.log10(ratio) - left) / (right - left) * (_WIDTH - _MARGIN - 16), 1)

    def y(lost: float) -> float:
        return round(16 + (high - lost) / (high - low) * (_HEIGHT - _MARGIN - 16), 1)

    points = [
        _Point(
            x(outcome.bops_ratio),
            y(outcome.lost or 0.0),
            f"{outcome.name}: {outcome.lost:+.2f} points lost at {outcome.bops_ratio:.5f} of the BOPs",
            outcome in best,
        )
        for outcome in judged
    ]
    decades = range(math.floor(left) - 1, math.ceil(right) + 1)
    ratios = [step * 10.0**decade for decade in decades for step in _TICKS]
    return {
        "points": points,
        "line": " ".join(f"{x(outcome.bops_ratio)},{y(outcome.lost or 0.0)}" for outcome in best),
        "costs": [_Tick(x(ratio), f"1/{1 / ratio:.0f}") for ratio in ratios if left <= math.log10(ratio) <= right],
        "losses": [_Tick(y(value), f"{value:g}") for value in _round_values(low, high)],
    }


def _round_values(low: float, high: float) -> list[float]:
    """Round numbers within an interval, about five of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(step * factor for factor in (0.5, 1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
