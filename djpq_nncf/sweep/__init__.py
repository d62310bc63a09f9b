# SPDX-License-Identifier: Apache-2.0
"""Many runs of one network under changed settings, the front they draw, and the best of them."""

from djpq_nncf.sweep._folder import SweepFolder
from djpq_nncf.sweep._front import best_run, front, sweep_table
from djpq_nncf.sweep._grid import Trial, budget_key, expand_grid, parse_setting
from djpq_nncf.sweep._page import write_sweep_page
from djpq_nncf.sweep._queue import Claim, LocalQueue, TrialQueue
from djpq_nncf.sweep._result import RunOutcome, read_outcomes
from djpq_nncf.sweep._seeds import SeedSummary, over_seeds, seed_table
from djpq_nncf.sweep._shared_queue import SharedQueue
from djpq_nncf.sweep._sweep import run_sweep

__all__ = [
    "Claim",
    "LocalQueue",
    "RunOutcome",
    "SeedSummary",
    "SharedQueue",
    "SweepFolder",
    "Trial",
    "TrialQueue",
    "best_run",
    "budget_key",
    "expand_grid",
    "front",
    "over_seeds",
    "parse_setting",
    "read_outcomes",
    "run_sweep",
    "seed_table",
    "sweep_table",
    "write_sweep_page",
]
