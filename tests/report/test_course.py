# SPDX-License-Identifier: Apache-2.0
"""From a log to charts: which rows make the course, where the freeze was, and what is compared with."""

from typing import Any

import pytest

from djpq_nncf.report._charts import LEFT, RIGHT, WIDTH
from djpq_nncf.report._course import course_charts, final_accuracy, freeze_step, original_accuracy

ORIGINAL = {"event": "original", "epoch": 0, "step": 0, "accuracy": 0.975}
SEARCH = [{"event": "epoch", "step": step, "accuracy": 0.9, "bops_ratio": 0.1, "strength": 1.0} for step in (10, 20)]
TUNING = [{"event": "epoch", "step": step, "accuracy": 0.95, "bops_ratio": 0.1} for step in (30, 40)]


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in path.split())]


def test_accuracy_is_of_epochs() -> None:
    history = [ORIGINAL, *SEARCH, {"event": "step", "step": 21, "accuracy": 0.1}]
    assert original_accuracy(history) == 0.975
    assert final_accuracy(history) == 0.9
    assert final_accuracy([ORIGINAL]) is None


def test_the_original_is_a_level() -> None:
    chart = next(chart for chart in course_charts([ORIGINAL, *SEARCH, *TUNING]) if chart.title == "Accuracy")
    course, level = chart.lines
    assert (level.name, level.style) == ("original 97.5 %", "asked")
    (left, height), (right, same) = places(level.path)
    assert (left, right) == (LEFT, WIDTH - RIGHT)
    assert height == same < min(y for _, y in places(course.path))
    assert len(course.points) == 4
    assert "original 97.5 %" in chart.description


def test_charts_have_the_same_axis() -> None:
    """Also that of the strength, which is logged until the freeze alone."""
    charts = course_charts([ORIGINAL, *SEARCH, *TUNING])
    assert [chart.title for chart in charts][-1] == "Strength of the compression"
    assert len({chart.x_ticks for chart in charts}) == 1
    assert len({chart.freeze for chart in charts}) == 1


@pytest.mark.parametrize(
    ("extra", "step"),
    [([{"event": "freeze", "epoch": 2, "step": 20}], 20.0), ([], 30.0)],
    ids=["told", "where the strength ends"],
)
def test_freeze(extra: list[dict[str, Any]], step: float) -> None:
    history = [*SEARCH, *extra, *TUNING]
    assert freeze_step(history) == step
    assert all(f"freeze at step {step:g}" in chart.description for chart in course_charts(history))


def test_no_freeze() -> None:
    assert freeze_step(SEARCH) is None
    assert freeze_step([ORIGINAL, *TUNING]) is None


def test_losses_are_of_steps_or_of_epochs() -> None:
    steps = [{"event": "step", "step": step, "loss": 1.0} for step in (1, 51, 101)]
    epochs = [{"event": "epoch", "step": step, "loss": 5.0} for step in (50, 100)]
    (chart,) = course_charts(sorted([*steps, *epochs], key=lambda row: row["step"]))
    assert len(chart.lines[0].points) == 3
    assert len({y for _, y in places(chart.lines[0].path)}) == 1


class Counting(dict[str, Any]):
    looked_up = 0

    def __contains__(self, name: object) -> bool:
        Counting.looked_up += 1
        return super().__contains__(name)


def test_a_long_log_is_read_a_few_times() -> None:
    history = [Counting(event="step", step=step, loss=1.0) for step in range(1000)]
    course_charts(history)
    assert Counting.looked_up < 10 * len(history)
