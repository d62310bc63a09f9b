# SPDX-License-Identifier: Apache-2.0
"""Mean and spread of runs that differ in their seed alone."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from djpq_nncf.report import render_table
from djpq_nncf.sweep._grid import Trial
from djpq_nncf.sweep._result import RunOutcome


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class SeedSummary:
    """What runs of several seeds came to.

    Attributes:
        name: the settings they have in common.
        runs: how many are finished.
        bops_ratio: compressed / original.
        accuracy: in percent; None where the training logs none.
        lost: points of accuracy; None likewise.
    """

    name: str
    runs: int
    bops_ratio: Spread
    accuracy: Spread | None
    lost: Spread | None


def over_seeds(trials: Sequence[Trial], outcomes: Sequence[RunOutcome]) -> list[SeedSummary]:
    """A summary for all settings of which two seeds or more are finished, by BOPs."""
    finished = {outcome.name: outcome for outcome in outcomes}
    groups: dict[str, list[RunOutcome]] = {}
    for trial in trials:
        if trial.name in finished and any(key == "seed" for key, _ in trial.settings):
            common = ",".join(text for key, text in trial.settings if key != "seed")
            groups.setdefault(common or "all runs", []).append(finished[trial.name])
    summaries = [_summary(name, own) for name, own in groups.items() if len(own) > 1]
    return sorted(summaries, key=lambda summary: summary.bops_ratio.mean)


def seed_table(summaries: Sequence[SeedSummary]) -> str:
    """The summaries as text."""
    rows = [
        (
            summary.name,
            str(summary.runs),
            f"{summary.bops_ratio.mean:.5f}",
            "-" if summary.accuracy is None else f"{summary.accuracy.mean:.2f}% ± {summary.accuracy.deviation:.2f}",
            "-" if summary.lost is None else f"{summary.lost.mean:+.2f} ± {summary.lost.deviation:.2f}",
        )
        for summary in summaries
    ]
    return render_table(("over seeds", "runs", "BOPs", "accuracy", "points lost"), rows)


def _summary(name: str, outcomes: Sequence[RunOutcome]) -> SeedSummary:
    return SeedSummary(
        name=name,
        runs=len(outcomes),
        bops_ratio=_spread([outcome.bops_ratio for outcome in outcomes]),
        accuracy=_spread_of_known([outcome.accuracy for outcome in outcomes], 100),
        lost=_spread_of_known([outcome.lost for outcome in outcomes], 1),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.mean(values), statistics.stdev(values))


def _spread_of_known(values: Sequence[float | None], factor: float) -> Spread | None:
    known = [factor * value for value in values if value is not None]
    return _spread(known) if len(known) == len(values) else None
