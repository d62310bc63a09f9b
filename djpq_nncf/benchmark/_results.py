# SPDX-License-Identifier: Apache-2.0
"""What a benchmark found, as a table and as plain data."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from djpq_nncf.benchmark._turns import Spread
from djpq_nncf.report import render_table


@dataclass(frozen=True)
class Row:
    """One file at one batch size.

    Attributes:
        model: the network, or the file as it was named.
        variant: of a network; None of a file.
        runtime: what ran it.
        batch: samples in each request.
        latency: seconds of one inference by itself.
        throughput: samples per second with several requests under way.
        latency_ratio, throughput_ratio: to those of ``baseline``.
        baseline: the row that it is compared with.
    """

    model: str
    variant: str | None
    runtime: str
    batch: int
    latency: Spread
    throughput: Spread
    latency_ratio: float
    throughput_ratio: float
    baseline: str


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything that was measured, and how.

    Attributes:
        rows: in the order in which they were taken in turn, by batch size.
        rounds: number of measurements of each.
        threads: of the runtimes.
        versions: of the packages.
    """

    rows: tuple[Row, ...]
    rounds: int
    threads: int
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: seconds, samples per second."""
        return asdict(self)

    def to_str(self) -> str:
        """The table, and how to read it."""
        header = ("model", "", "runtime", "batch", "latency", "quartiles", "ratio", "samples/s", "quartiles", "ratio")
        rows = [
            (
                row.model,
                row.variant or "",
                row.runtime,
                str(row.batch),
                f"{_milliseconds(row.latency.median)} ms",
                _quartiles(row.latency, _milliseconds),
                f"{row.latency_ratio:.2f}",
                f"{row.throughput.median:,.1f}",
                _quartiles(row.throughput, lambda value: f"{value:,.1f}"),
                f"{row.throughput_ratio:.2f}",
            )
            for row in self.rows
        ]
        against = " or ".join(dict.fromkeys(row.baseline for row in self.rows))
        one, many = f"{self.threads} thread" + "s" * (self.threads > 1), f"{self.threads} at once, on a thread each"
        notes = [
            f"Medians of {self.rounds} rounds, all in turn. Latency: one request on {one}; samples/s: {many}.",
            f"Ratios are to {against} in the same runtime: below 1 is better for latency, above 1 for samples/s.",
        ]
        return "\n".join([render_table(header, rows, text_columns=(0, 1, 2)), "", *notes])


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3f}"


def _quartiles(spread: Spread, show: Callable[[float], str]) -> str:
    return f"{show(spread.first_quartile)} to {show(spread.third_quartile)}"
