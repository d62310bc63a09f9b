# SPDX-License-Identifier: Apache-2.0
"""The course of a training: from the rows of a log to charts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from djpq_nncf.report._charts import Level, LineChart, Series, line_chart

History = Sequence[Mapping[str, Any]]
"""Rows of a log: ``event`` ("step", "epoch", ...), ``epoch``, ``step``, and scalars by name."""

COSTS = {"bops_ratio": "BOPs", "macs_ratio": "MACs", "size_ratio": "weight bits"}
_TRAINING = ("step", "epoch")


def course_charts(history: History) -> list[LineChart]:
    """Losses, accuracy, ratios and strength, all over the same steps; those that were logged twice at least."""
    steps = [float(row["step"]) for row in _rows(history, *_TRAINING) if row.get("step") is not None]
    axis = (0.0, max(steps, default=0.0))
    freeze = freeze_step(history)
    original = original_accuracy(history)
    wanted = [
        line_chart(
            "Loss",
            {name.replace("_", " "): _losses(history, name) for name in ("loss", "task_loss", "compression_loss")},
            axis=axis,
            freeze=freeze,
        ),
        line_chart(
            "Accuracy",
            {"accuracy": [(x, 100 * y) for x, y in _series(_rows(history, "epoch"), "accuracy")]},
            axis=axis,
            unit=" %",
            freeze=freeze,
            level=None if original is None else Level("original", 100 * original),
        ),
    ]
    for key, name in COSTS.items():
        asked = _series(_rows(history, *_TRAINING), f"{key}_asked")
        if asked or key == "bops_ratio":
            wanted.append(
                line_chart(
                    f"{name[0].upper()}{name[1:]}, share of the original",
                    {name: _series(_rows(history, *_TRAINING), key), "asked for": asked},
                    axis=axis,
                    logarithmic=True,
                    freeze=freeze,
                    dashed=("asked for",),
                )
            )
    strength = _series(_rows(history, *_TRAINING), "strength")
    wanted.append(
        line_chart("Strength of the compression", {"strength": strength}, axis=axis, logarithmic=True, freeze=freeze)
    )
    return [chart for chart in wanted if chart is not None]


def original_accuracy(history: History) -> float | None:
    """What the network reached before."""
    return next((row["accuracy"] for row in _rows(history, "original") if row.get("accuracy") is not None), None)


def final_accuracy(history: History) -> float | None:
    """What it reached after its last epoch that was measured."""
    measured = [row["accuracy"] for row in _rows(history, "epoch") if row.get("accuracy") is not None]
    return measured[-1] if measured else None


def freeze_step(history: History) -> float | None:
    """The step of the freeze; in logs that do not tell, where the strength is logged no more."""
    for row in _rows(history, "freeze"):
        return float(row["step"])
    rows = list(_rows(history, *_TRAINING))
    if not any("strength" in row for row in rows):
        return None
    return next((float(row["step"]) for row in rows if "strength" not in row), None)


def _rows(history: History, *events: str) -> Iterable[Mapping[str, Any]]:
    return (row for row in history if row.get("event") in events)


def _losses(history: History, name: str) -> Series:
    """By steps or by epochs, whichever was logged more often: the two together would be a zigzag."""
    return max((_series(_rows(history, event), name) for event in _TRAINING), key=len)


def _series(rows: Iterable[Mapping[str, Any]], name: str) -> Series:
    return [
        (float(row["step"]), float(row[name]))
        for row in rows
        if row.get("step") is not None and isinstance(row.get(name), (int, float))
    ]
