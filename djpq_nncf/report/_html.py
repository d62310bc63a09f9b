# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page that needs no network."""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from djpq_nncf.errors import DataError
from djpq_nncf.report import _charts
from djpq_nncf.report._charts import LineChart, Series, format_value, line_chart
from djpq_nncf.report._run_report import LayerFigures, RunReport, total

History = Sequence[Mapping[str, Any]]
"""Rows of a log: ``event`` ("step", "epoch", ...), ``epoch``, ``step``, and scalars by name."""

_COSTS = {"bops_ratio": "BOPs", "macs_ratio": "MACs", "size_ratio": "weight bits"}


@dataclass(frozen=True)
class _Summary:
    name: str
    before: str
    after: str
    change: str


def write_report(report: RunReport, path: str | os.PathLike[str], *, history: History = ()) -> None:
    """Write the page.

    Args:
        report: what it shows.
        path: HTML file; it is replaced only once the new one is complete.
        history: of the training, as a run folder logs it; may be empty.

    Raises:
        DataError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(_page(report, history), encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise DataError(
            f"Cannot write the report {target}: {error.strerror or error}. Free some space or choose another folder."
        ) from error


def _page(report: RunReport, history: History) -> str:
    environment = Environment(
        loader=PackageLoader("djpq_nncf.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_count, value=format_value, percent=_percent)
    return environment.get_template("report.html.jinja").render(
        report=report,
        summary=_summary(report, history),
        most_bits=_most_bits(report.layers),
        largest={name: _largest(report.layers, name) for name in ("baseline_bops", "baseline_macs", "baseline_size")},
        costs=(
            ("BOPs", "bops", "baseline_bops"),
            ("MACs", "macs", "baseline_macs"),
            ("Bits of the weights", "size", "baseline_size"),
        ),
        roles=[(role, list(own)) for role, own in groupby(report.groups, key=lambda group: group.role)],
        reasons=_by_reason(report),
        charts=_charts_of(history),
        epochs=[row for row in history if row.get("event") == "epoch"],
        config=json.dumps(report.config, indent=2),
        geometry=_charts,
    )


def _summary(report: RunReport, history: History) -> list[_Summary]:
    rows = []
    accuracy = [row["accuracy"] for row in history if row.get("accuracy") is not None]
    if accuracy:
        original = next((row["accuracy"] for row in history if row.get("event") == "original"), None)
        change = "" if original is None else f"{100 * (accuracy[-1] - original):+.2f} points"
        rows.append(
            _Summary("Accuracy", "" if original is None else _percent(original), _percent(accuracy[-1]), change)
        )
    for name, after, before in (
        ("BOPs per sample", "bops", "baseline_bops"),
        ("MACs per sample", "macs", "baseline_macs"),
        ("Bits of the weights", "size", "baseline_size"),
    ):
        old, new = total(report.layers, before), total(report.layers, after)
        rows.append(_Summary(name, _count(old), _count(new), f"{old / new:.2f}x fewer" if new else ""))
    kept, size = sum(group.kept for group in report.groups), sum(group.size for group in report.groups)
    if size:
        rows.append(_Summary("Prunable channels", f"{size:,}", f"{kept:,}", f"{_percent(1 - kept / size)} removed"))
    for key, ratio in report.asked.items():
        name = f"{_COSTS[key][0].upper()}{_COSTS[key][1:]}"
        rows.append(_Summary(f"{name}, share used", "", f"{report.ratios[key]:.5f}", f"{ratio:g} asked for"))
    return rows


def _charts_of(history: History) -> list[LineChart]:
    freeze = next(
        (row["step"] for row in history if row.get("event") in ("epoch", "step") and _is_frozen(row, history)), None
    )
    wanted: list[LineChart | None] = [
        line_chart(
            "Loss",
            {name.replace("_", " "): _series(history, name) for name in ("loss", "task_loss", "compression_loss")},
            freeze=freeze,
        ),
        line_chart(
            "Accuracy", {"accuracy": [(x, 100 * y) for x, y in _series(history, "accuracy")]}, unit=" %", freeze=freeze
        ),
    ]
    for key, name in _COSTS.items():
        asked = _series(history, f"{key}_asked")
        if asked or key == "bops_ratio":
            wanted.append(
                line_chart(
                    f"{name[0].upper()}{name[1:]}, share of the original",
                    {name: _series(history, key), "asked for": asked},
                    logarithmic=True,
                    freeze=freeze,
                    dashed=("asked for",),
                )
            )
    wanted.append(line_chart("Strength", {"strength": _series(history, "strength")}, logarithmic=True))
    return [chart for chart in wanted if chart is not None]


def _is_frozen(row: Mapping[str, Any], history: History) -> bool:
    """The strength is logged until the freeze."""
    return "strength" not in row and any("strength" in other for other in history)


def _series(history: History, name: str) -> Series:
    return [
        (float(row["step"]), float(row[name]))
        for row in history
        if row.get("step") is not None and isinstance(row.get(name), (int, float))
    ]


def _most_bits(layers: Sequence[LayerFigures]) -> float:
    """The scale of the bars: quantized layers should fill it, float ones (32) only where nothing else is there."""
    bits = [value for layer in layers for value in (layer.weight_bits, layer.activation_bits) if value is not None]
    return max([value for value in bits if value <= 16] or bits or [1.0])


def _largest(layers: Sequence[LayerFigures], name: str) -> float:
    return max([getattr(layer, name) for layer in layers], default=0.0) or 1.0


def _by_reason(report: RunReport) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for entry in report.frozen:
        reasons.setdefault(entry.reason, []).append(f"{entry.layer}: {entry.what}")
    return reasons


def _count(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if math.isfinite(share) else "-"
