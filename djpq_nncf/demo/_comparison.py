# SPDX-License-Identifier: Apache-2.0
"""One network before and after compression, as files that were run: figures and table."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from djpq_nncf.benchmark import Contestant, latencies, runtime_name
from djpq_nncf.cost import recount
from djpq_nncf.export import Execution, file_size, open_runtime
from djpq_nncf.report import render_table


@dataclass(frozen=True)
class FileFigures:
    """What was measured on one exported file.

    Attributes:
        path: the file.
        runtime: what ran it.
        accuracy: top-1 on the test set, 0 to 1.
        macs, bops: per sample, counted again from the shapes and grids in the file.
        size: bytes on disk.
        latency: batch size -> median seconds of one inference on one thread.
    """

    path: str
    runtime: str
    accuracy: float
    macs: int
    bops: int
    size: int
    latency: dict[int, float]


@dataclass(frozen=True)
class Comparison:
    """Before and after, once for each file format in the same order.

    Attributes:
        before, after: figures of each file.
        parameters_before, parameters_after: number of trained parameters of the PyTorch models.
    """

    before: tuple[FileFigures, ...]
    after: tuple[FileFigures, ...]
    parameters_before: int
    parameters_after: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def to_str(self) -> str:
        """The table."""
        pairs = list(zip(self.before, self.after, strict=True))
        first, last = pairs[0]
        rows: list[tuple[str, ...]] = [
            (
                f"accuracy, {old.runtime}",
                f"{old.accuracy:.2%}",
                f"{new.accuracy:.2%}",
                f"{100 * (new.accuracy - old.accuracy):+.2f} points",
            )
            for old, new in pairs
        ]
        rows.append(("MACs per image", _count(first.macs), _count(last.macs), _times(first.macs, last.macs)))
        rows.append(("BOPs per image", _count(first.bops), _count(last.bops), _times(first.bops, last.bops)))
        counts = self.parameters_before, self.parameters_after
        rows.append(("parameters", *(f"{count:,}" for count in counts), _times(*counts)))
        for old, new in pairs:
            suffix = Path(old.path).suffix
            name = "file size, .xml and .bin" if suffix == ".xml" else f"file size, {suffix}"
            rows.append((name, _kilobytes(old.size), _kilobytes(new.size), _times(old.size, new.size)))
        for old, new in pairs:
            for batch, seconds in old.latency.items():
                name = f"latency, {old.runtime}, batch {batch}"
                faster = new.latency[batch]
                rows.append((name, _milliseconds(seconds), _milliseconds(faster), _times(seconds, faster)))
        return render_table(("", "FP32", "compressed", "change"), rows)


def compare_files(
    before: list[Path],
    after: list[Path],
    images: Tensor,
    labels: Tensor,
    *,
    parameters: tuple[int, int],
    batch_sizes: tuple[int, ...] = (1, 64),
    rounds: int = 200,
) -> Comparison:
    """Run files on the test set and take their time; ``before[i]`` and ``after[i]`` have the same format.

    The latencies of the two are taken in turn.
    """
    figures: tuple[list[FileFigures], list[FileFigures]] = ([], [])
    for pair in zip(before, after, strict=True):
        seconds = {
            batch: latencies([Contestant(path, [images[:batch].numpy()]) for path in pair], rounds=rounds, threads=1)
            for batch in batch_sizes
        }
        for position, path in enumerate(pair):
            runtime = open_runtime(path, Execution(threads=1))
            predicted = np.concatenate([runtime.run([chunk.numpy()])[0].argmax(1) for chunk in images.split(256)])
            cost = recount(path)
            figures[position].append(
                FileFigures(
                    path=str(path),
                    runtime=runtime_name(path),
                    accuracy=float((predicted == labels.numpy()).mean()),
                    macs=cost.macs,
                    bops=cost.bops,
                    size=file_size(path),
                    latency={batch: taken[position].median for batch, taken in seconds.items()},
                )
            )
    return Comparison(tuple(figures[0]), tuple(figures[1]), *parameters)


def _count(value: int) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return str(value)


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.1f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3f} ms"


def _times(old: float, new: float) -> str:
    return f"{old / new:.2f}x less" if new <= old else f"{new / old:.2f}x more"
