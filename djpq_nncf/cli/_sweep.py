# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf sweep``: from what a user types to the table and the choice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import ConfigError
from djpq_nncf.run import RunFolder
from djpq_nncf.sweep import (
    LocalQueue,
    SharedQueue,
    TrialQueue,
    best_run,
    budget_key,
    expand_grid,
    parse_setting,
    read_outcomes,
    run_sweep,
    sweep_table,
    write_sweep_page,
)


@dataclass(frozen=True)
class SweepRequest:
    """The arguments and options of the command."""

    config: Path
    arguments: tuple[str, ...]
    out: Path
    budgets: str | None
    seeds: str | None
    settings: tuple[str, ...]
    jobs: int
    most_lost: float | None
    most_bops: float | None
    storage: str | None


def sweep_configs(request: SweepRequest, *, say: Callable[[str], None]) -> bool:
    """Run the sweep and say what came out; returns whether every run is finished.

    Raises:
        ConfigError: a setting leads nowhere, or a combination is not valid.
        RunError: the folder holds another sweep, or cannot be written to.
        DataError: no run is within the limits asked for.
    """
    config = NNCFConfig.from_json(request.config)
    texts = [
        *([] if request.budgets is None else [f"{budget_key(config)}={request.budgets}"]),
        *([] if request.seeds is None else [f"seed={request.seeds}"]),
        *request.settings,
    ]
    if not texts:
        raise ConfigError("There is nothing to sweep over. Give --budgets, --seeds or --set.")
    trials = expand_grid(config, [parse_setting(text) for text in texts])
    queue: TrialQueue = LocalQueue(trials)
    if request.storage is not None:
        queue = SharedQueue(
            request.storage,
            request.out.name,
            trials,
            is_running=lambda trial: RunFolder(request.out / "runs" / trial.name).is_written,
        )
    failures = run_sweep(request.out, trials, queue, request.arguments, jobs=request.jobs, say=say)
    outcomes = read_outcomes(request.out / "runs" / trial.name for trial in trials)
    if outcomes:
        say(f"\n{sweep_table(outcomes)}\n")
        say(f"Wrote {write_sweep_page(outcomes, request.out)}")
    for name, message in sorted(failures.items()):
        say(f"{name} failed: {message}")
    if len(outcomes) + len(failures) < len(trials):
        say(f"{len(trials) - len(outcomes) - len(failures)} runs are left, or with other workers.")
    if outcomes and (request.most_lost is not None or request.most_bops is not None):
        best = best_run(outcomes, most_lost=request.most_lost, most_bops=request.most_bops)
        say(f"Best: {best.path}")
    return len(outcomes) == len(trials)
