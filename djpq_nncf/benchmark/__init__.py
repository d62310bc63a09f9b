# SPDX-License-Identifier: Apache-2.0
"""How fast exported files run, next to each other."""

from djpq_nncf.benchmark._calibration import Calibration, random_calibration, read_calibration
from djpq_nncf.benchmark._entry import RUNTIMES, Entry, runtime_name
from djpq_nncf.benchmark._inputs import random_inputs
from djpq_nncf.benchmark._results import BenchmarkResult, Row
from djpq_nncf.benchmark._run import run_benchmark
from djpq_nncf.benchmark._turns import Contestant, Spread, latencies, throughputs
from djpq_nncf.benchmark._variants import Plan, quantize_file, remove_at_random, write_variants

__all__ = [
    "RUNTIMES",
    "BenchmarkResult",
    "Calibration",
    "Contestant",
    "Entry",
    "Plan",
    "Row",
    "Spread",
    "latencies",
    "quantize_file",
    "random_calibration",
    "random_inputs",
    "read_calibration",
    "remove_at_random",
    "run_benchmark",
    "runtime_name",
    "throughputs",
    "write_variants",
]
