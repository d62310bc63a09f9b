# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf sweep``: from what a user types to the tables and the choice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import ConfigError, DataError
from djpq_nncf.sweep import (
    LocalQueue,
    RunOutcome,
    SharedQueue,
    SweepFolder,
    TrialQueue,
    best_run,
    budget_key,
    expand_grid,
    over_seeds,
    parse_setting,
    read_outcomes,
    run_sweep,
    seed_table,
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
    folder = SweepFolder(request.out)
    folder.begin(trials, request.arguments)
    queue: TrialQueue = LocalQueue(folder, trials)
    if request.storage is not None:
        queue = SharedQueue(request.storage, folder, trials)
    failures = run_sweep(folder, trials, queue, request.arguments, jobs=request.jobs, say=say)
    outcomes, damaged = read_outcomes(folder.run(trial.name).path for trial in trials)
    finished = {outcome.name for outcome in outcomes}
    failures = {name: reason for name, reason in (failures | damaged).items() if name not in finished}
    seeds = over_seeds(trials, outcomes)
    if outcomes:
        say(f"\n{sweep_table(outcomes)}\n")
    if seeds:
        say(f"{seed_table(seeds)}\n")
    for name, reason in sorted(failures.items()):
        say(f"{name} failed: {reason}")
    if left := len(trials) - len(outcomes) - len(failures):
        say(f"{left} of the runs are with another process; the same command tells what came of them.")
    limits = {"most_lost": request.most_lost, "most_bops": request.most_bops}
    best: RunOutcome | None = None
    impossible: DataError | None = None
    if outcomes and any(limit is not None for limit in limits.values()):
        try:
            best = best_run(outcomes, **limits)
        except DataError as error:
            impossible = error
    say(f"Wrote {write_sweep_page(outcomes, request.out, failures=failures, seeds=seeds, best=best, **limits)}")
    if impossible is not None:
        raise impossible
    if best is not None:
        say(f"Best: {best.path}")
    return len(outcomes) == len(trials)
