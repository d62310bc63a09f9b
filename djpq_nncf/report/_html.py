# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page that needs no network."""

import contextlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from djpq_nncf.errors import DataError
from djpq_nncf.report import _charts
from djpq_nncf.report._charts import format_value
from djpq_nncf.report._course import COSTS, History, course_charts, final_accuracy, freeze_step, original_accuracy
from djpq_nncf.report._run_report import LayerFigures, RunReport, total


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
    environment.filters.update(number=_count, value=format_value, percent=_percent, pieces=_pieces)
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
        products=any(not layer.weights[1] for layer in report.layers),
        charts=course_charts(history),
        frozen=freeze_step(history) is not None,
        epochs=[row for row in history if row.get("event") == "epoch"],
        config=json.dumps(report.config, indent=2),
        geometry=_charts,
    )


def _summary(report: RunReport, history: History) -> list[_Summary]:
    rows = []
    original, final = original_accuracy(history), final_accuracy(history)
    if original is not None or final is not None:
        change = "" if original is None or final is None else f"{100 * (final - original):+.2f} points"
        before, after = ("not measured" if share is None else _percent(share) for share in (original, final))
        rows.append(_Summary("Accuracy", before, after, change))
    for name, used, of in (
        ("BOPs per sample", "bops", "baseline_bops"),
        ("MACs per sample", "macs", "baseline_macs"),
        ("Bits of the weights", "size", "baseline_size"),
    ):
        old, new = total(report.layers, of), total(report.layers, used)
        rows.append(_Summary(name, _count(old), _count(new), f"{old / new:.2f}x fewer" if new else ""))
    kept, size = sum(group.kept for group in report.groups), sum(group.size for group in report.groups)
    if size:
        rows.append(_Summary("Prunable channels", f"{size:,}", f"{kept:,}", f"{_percent(1 - kept / size)} removed"))
    for key, ratio in report.asked.items():
        name = f"{COSTS[key][0].upper()}{COSTS[key][1:]}, share of the original"
        rows.append(_Summary(name, "1", f"{report.ratios[key]:.5f}", f"{ratio:g} asked for"))
    return rows


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


def _pieces(name: str) -> list[str]:
    """A name cut where a line may break."""
    return re.findall(r"[^./:_-]*[./:_-]*", name)[:-1] or [name]
