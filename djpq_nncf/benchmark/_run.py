# SPDX-License-Identifier: Apache-2.0
"""Times files together, batch size by batch size."""

from collections.abc import Sequence
from importlib.metadata import version

from djpq_nncf.algorithms._progress import track
from djpq_nncf.benchmark._entry import Entry, runtime_name
from djpq_nncf.benchmark._inputs import random_inputs
from djpq_nncf.benchmark._results import BenchmarkResult, Row
from djpq_nncf.benchmark._turns import Contestant, latencies, throughputs

_PACKAGES = ("djpq_nncf", "nncf", "onnxruntime", "openvino", "torch")


def run_benchmark(
    entries: Sequence[Entry], *, batch_sizes: Sequence[int] = (1,), rounds: int = 20, threads: int = 1
) -> BenchmarkResult:
    """Latency and throughput of files on random inputs, all in turn.

    Args:
        entries: the files.
        batch_sizes: of each request.
        rounds: how often each is measured, after a warm-up.
        threads: of each runtime.

    Raises:
        ExportError: a file is missing or damaged.
        DataError: a file does not take a batch size, or leaves sizes open.
    """
    baselines = find_baselines(entries)
    # all of them before the first measurement: what does not fit shows at once
    contestants = {
        batch: [Contestant(entry.path, random_inputs(entry.path, batch, entry.shape)) for entry in entries]
        for batch in batch_sizes
    }
    rows = []
    with track("Measuring", 2 * rounds * len(contestants)) as advance:
        for batch, files in contestants.items():
            seconds = latencies(files, rounds=rounds, threads=threads, advance=advance)
            rates = throughputs(files, rounds=rounds, threads=threads, advance=advance)
            for position, (entry, baseline) in enumerate(zip(entries, baselines, strict=True)):
                rows.append(
                    Row(
                        model=entry.model,
                        variant=entry.variant,
                        runtime=runtime_name(entry.path),
                        batch=batch,
                        latency=seconds[position],
                        throughput=rates[position],
                        latency_ratio=seconds[position].median / seconds[baseline].median,
                        throughput_ratio=rates[position].median / rates[baseline].median,
                        baseline=entries[baseline].name,
                    )
                )
    return BenchmarkResult(tuple(rows), rounds, threads, {name: version(name) for name in _PACKAGES})


def find_baselines(entries: Sequence[Entry]) -> list[int]:
    """Position of what each entry is compared with: in its runtime the last baseline up to it, or else the first."""
    found: dict[str, int] = {}
    result = []
    for position, entry in enumerate(entries):
        if entry.is_baseline:
            found[entry.path.suffix] = position
        result.append(found.setdefault(entry.path.suffix, position))
    return result
