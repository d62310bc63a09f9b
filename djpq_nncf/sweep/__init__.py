# SPDX-License-Identifier: Apache-2.0
"""Many runs of one network under changed settings, the front they draw, and the best of them."""

from djpq_nncf.sweep._front import best_run, front, sweep_table
from djpq_nncf.sweep._grid import Trial, budget_key, expand_grid, parse_setting
from djpq_nncf.sweep._page import write_sweep_page
from djpq_nncf.sweep._queue import LocalQueue, SharedQueue, TrialQueue
from djpq_nncf.sweep._result import RunOutcome, read_outcomes
from djpq_nncf.sweep._sweep import run_sweep

__all__ = [
    "LocalQueue",
    "RunOutcome",
    "SharedQueue",
    "Trial",
    "TrialQueue",
    "best_run",
    "budget_key",
    "expand_grid",
    "front",
    "parse_setting",
    "read_outcomes",
    "run_sweep",
    "sweep_table",
    "write_sweep_page",
]
