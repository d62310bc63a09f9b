# SPDX-License-Identifier: Apache-2.0
"""From how many removed channels on a layer runs faster in INT8: a chain of layers of 128 channels, some removed.

python benchmarks/channel_counts.py
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from latency import smaller
from performance_page import machine, markdown_table, write_section
from torch import nn

from djpq_nncf.benchmark import RUNTIMES, BenchmarkResult, Entry, run_benchmark

WIDTH = 128
COUNTS = (128, 127, 126, 124, 122, 120, 116, 112, 104, 100, 96, 80, 64)
IMAGE = (1, 3, 28, 28)
DEPTH = 6


def chain(kernel: int) -> nn.Module:
    """Layers of one width, each behind the ReLU of the one before."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 1), nn.ReLU()]
    for _ in range(DEPTH):
        layers += [nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


def write_files(kernel: int, folder: Path) -> Iterator[Entry]:
    """The chain with each number of channels, for each runtime."""
    for count in COUNTS:
        ctrl = smaller(chain(kernel), torch.randn(IMAGE), 1 - count / WIDTH, 1, quantized=True)
        for suffix in RUNTIMES.values():
            path = folder / f"{kernel}_{count}{suffix}"
            ctrl.export_model(path)
            yield Entry(f"{kernel}x{kernel}", path, str(count), is_baseline=count == WIDTH, shape=IMAGE)


def columns(result: BenchmarkResult) -> list[list[str]]:
    """For each runtime the latencies by count, as ratios to all channels."""
    return [
        [f"{row.latency_ratio:.2f}" for row in result.rows if row.runtime.startswith(runtime)]
        for runtime in ("OpenVINO", "ONNX Runtime")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found: list[list[str]] = []
    for kernel in (3, 1):
        with tempfile.TemporaryDirectory() as folder:
            entries = list(write_files(kernel, Path(folder)))
            found += columns(run_benchmark(entries, rounds=arguments.rounds, threads=arguments.threads))
    header = ("channels", "MACs of a layer", "3x3, OpenVINO", "3x3, ONNX Runtime", "1x1, OpenVINO", "1x1, ONNX Runtime")
    shares = [f"{(count / WIDTH) ** 2:.2f}" for count in COUNTS]
    rows = [list(row) for row in zip(map(str, COUNTS), shares, *found, strict=True)]
    table = markdown_table(header, rows)
    print(table)
    if not arguments.no_page:
        conditions = f"{DEPTH} layers in a chain, 28x28, {arguments.threads} threads, {arguments.rounds} rounds"
        about = f"`python benchmarks/channel_counts.py`: {conditions}, {machine()}."
        text = f"{about} Latency as a ratio to all {WIDTH} channels.\n\n{table}"
        write_section("Channel counts that pay", text)


if __name__ == "__main__":
    main()
