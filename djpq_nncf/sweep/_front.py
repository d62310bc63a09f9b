# SPDX-License-Identifier: Apache-2.0
"""Which runs no other beats, the best for a wish, and all in a table."""

from collections.abc import Sequence

from djpq_nncf.errors import DataError
from djpq_nncf.report import render_table
from djpq_nncf.sweep._result import RunOutcome


def front(outcomes: Sequence[RunOutcome]) -> list[RunOutcome]:
    """The runs which none beats in both BOPs and accuracy, by BOPs."""
    judged = sorted((o for o in outcomes if o.lost is not None), key=lambda o: (o.bops_ratio, o.lost))
    best: list[RunOutcome] = []
    for outcome in judged:
        assert outcome.lost is not None
        if not best or outcome.lost < (best[-1].lost or 0.0):
            best.append(outcome)
    return best


def best_run(
    outcomes: Sequence[RunOutcome], *, most_lost: float | None = None, most_bops: float | None = None
) -> RunOutcome:
    """Of the runs within the limits the one with the fewest BOPs, or where only BOPs are limited the most accurate.

    Args:
        outcomes: of a sweep.
        most_lost: points of accuracy.
        most_bops: BOPs / BOPs of the original.

    Raises:
        DataError: no run is within the limits, or none has logged an accuracy.
    """
    within = [
        outcome
        for outcome in outcomes
        if outcome.lost is not None
        and (most_lost is None or outcome.lost <= most_lost)
        and (most_bops is None or outcome.bops_ratio <= most_bops)
    ]
    if outcomes and all(outcome.lost is None for outcome in outcomes):
        raise DataError(
            "No finished run has logged an accuracy to choose by. Let the training log that of the original, "
            "run.log_original(accuracy=...), and of each epoch, run.log_epoch(accuracy=...)."
        )
    if not within:
        limits = describe_limits(most_lost=most_lost, most_bops=most_bops)
        raise DataError(f"No finished run has {limits}. Allow more, or sweep over other budgets.")
    if most_lost is not None:
        return min(within, key=lambda o: (o.bops_ratio, o.lost))
    return min(within, key=lambda o: (o.lost, o.bops_ratio))


def describe_limits(*, most_lost: float | None, most_bops: float | None) -> str:
    """What was asked for, in words."""
    limits = [
        *([] if most_lost is None else [f"at most {most_lost:g} points lost"]),
        *([] if most_bops is None else [f"at most {most_bops:g} of the BOPs"]),
    ]
    return " and ".join(limits)


def sweep_table(outcomes: Sequence[RunOutcome]) -> str:
    """All runs by BOPs; those of the front are marked."""
    best = front(outcomes)
    rows = [
        (
            "*" if outcome in best else "",
            outcome.name,
            f"{outcome.bops_ratio:.5f}",
            f"{outcome.macs_ratio:.3f}",
            f"{outcome.size_ratio:.3f}",
            "-" if outcome.accuracy is None else f"{outcome.accuracy:.2%}",
            "-" if outcome.lost is None else f"{outcome.lost:+.2f}",
        )
        for outcome in sorted(outcomes, key=lambda o: o.bops_ratio)
    ]
    header = ("front", "run", "BOPs", "MACs", "weights", "accuracy", "points lost")
    return render_table(header, rows)
