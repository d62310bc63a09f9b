# SPDX-License-Identifier: Apache-2.0
"""The front of a sweep as one HTML page that needs no network."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from djpq_nncf.errors import RunError
from djpq_nncf.run import RunFolder
from djpq_nncf.sweep._chart import sweep_chart
from djpq_nncf.sweep._folder import write_whole
from djpq_nncf.sweep._front import describe_limits, front
from djpq_nncf.sweep._result import RunOutcome
from djpq_nncf.sweep._seeds import SeedSummary


def write_sweep_page(
    outcomes: Sequence[RunOutcome],
    folder: Path,
    *,
    failures: Mapping[str, str] | None = None,
    seeds: Sequence[SeedSummary] = (),
    best: RunOutcome | None = None,
    most_lost: float | None = None,
    most_bops: float | None = None,
) -> Path:
    """Write ``sweep.html``: points lost against BOPs, the front, and tables.

    Args:
        outcomes: the finished runs.
        folder: of the sweep.
        failures: what went wrong, by run.
        seeds: mean and spread over seeds.
        best: the run that was picked.
        most_lost: limit that it was picked within.
        most_bops: likewise.

    Raises:
        RunError: the folder cannot be written to.
    """
    environment = Environment(loader=PackageLoader("djpq_nncf.sweep", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("sweep.html.jinja").render(
        title=f"Sweep {folder.resolve().name}",
        outcomes=sorted(outcomes, key=lambda outcome: outcome.bops_ratio),
        links={outcome.name: _link(outcome, folder) for outcome in outcomes},
        failures=sorted((failures or {}).items()),
        seeds=seeds,
        front=front(outcomes),
        best=best,
        limits=describe_limits(most_lost=most_lost, most_bops=most_bops),
        chart=sweep_chart(outcomes, best, most_lost=most_lost, most_bops=most_bops),
    )
    path = folder / "sweep.html"
    try:
        write_whole(path, page)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}. Free some space and run it again.") from error
    return path


def _link(outcome: RunOutcome, folder: Path) -> str | None:
    """From the page to the report of a run, wherever the folder is moved to."""
    report = RunFolder(outcome.path).report
    return quote(Path(os.path.relpath(report, folder)).as_posix()) if report.is_file() else None
