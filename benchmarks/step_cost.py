# SPDX-License-Identifier: Apache-2.0
"""What a training step costs: FP32, NNCF's quantization-aware training, and DJPQ before and after the freeze.

One step is forward, backward and optimizer, for DJPQ with ``scheduler.step()`` and ``loss()``. All candidates take the
same batch in turn; the median of the rounds counts. Peak memory is that of the whole process above what it had before
the first step, each candidate in a process of its own.

    python benchmarks/step_cost.py
"""

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import nncf
import torch
import torchvision
from performance_page import machine, markdown_table, write_section
from torch import nn
from torch.nn import functional as F

from djpq_nncf import create_compressed_model

CANDIDATES = ("FP32", "NNCF QAT", "DJPQ", "DJPQ, frozen")
CONFIG = {
    "compression": {
        "algorithm": "djpq",
        "target": {"bops_ratio": 0.05},
        "schedule": {"epochs": 100, "freeze_epoch": 50, "steps_per_epoch": 100},
    }
}
Step = Callable[[], None]


def make_step(candidate: str, model_name: str, size: int, batch: int, *, compiled: bool) -> Step:
    """A training step of a candidate, on a batch of its own."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(model_name, weights=None)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    before, extra, parameters = lambda: None, lambda: 0.0, None
    if candidate == "NNCF QAT":
        model = nncf.quantize(model.eval(), nncf.Dataset([images[:8]]), subset_size=1)
    elif candidate.startswith("DJPQ"):
        ctrl, model = create_compressed_model(model, CONFIG, init_data=[images[:8]])
        ctrl.scheduler.epoch_step()
        if "frozen" in candidate:
            ctrl.freeze()
        before, extra, parameters = ctrl.scheduler.step, ctrl.loss, ctrl.param_groups(lr=0.01)
    model.train()
    optimizer = torch.optim.SGD(parameters or model.parameters(), lr=0.01, momentum=0.9)
    forward = (
        torch.compile(model) if compiled and candidate != "NNCF QAT" else model
    )  # torch.compile fails on NNCF's hooks

    def step() -> None:
        before()
        loss = F.cross_entropy(forward(images), labels) + extra()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def times(model_name: str, size: int, batch: int, rounds: int, *, compiled: bool) -> dict[str, float]:
    """Median seconds of a step of each candidate, taken in turn."""
    steps = {name: make_step(name, model_name, size, batch, compiled=compiled) for name in CANDIDATES}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number >= 2:  # the first ones allocate and compile
                taken[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


def peak_memory(candidate: str, model_name: str, size: int, batch: int) -> int:
    """Bytes that two steps took at most above what the process had before them (Linux)."""
    step = make_step(candidate, model_name, size, batch, compiled=False)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start = _status("VmRSS")
    step()
    step()
    return _status("VmHWM") - start


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def _measure_memory(candidate: str, model_name: str, size: int, batch: int) -> int:
    command = [sys.executable, __file__, "--memory-of", candidate, model_name, str(size), "--batch", str(batch)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile every candidate")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    parser.add_argument("--memory-of", nargs=3, metavar=("CANDIDATE", "MODEL", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.memory_of:
        candidate, model_name, size = arguments.memory_of
        print(json.dumps(peak_memory(candidate, model_name, int(size), arguments.batch)))
        return
    header = ["network", "FP32 step", *(f"{name}, times FP32" for name in CANDIDATES[1:])]
    if not arguments.no_memory:
        header += ["FP32 memory", *(f"{name}, times FP32" for name in CANDIDATES[1:])]
    rows = []
    for model_name in arguments.models:
        for size in arguments.sizes:
            seconds = times(model_name, size, arguments.batch, arguments.rounds, compiled=arguments.compile)
            row = [f"{model_name}, {size}x{size}", f"{1000 * seconds['FP32']:.0f} ms"]
            row += [f"{seconds[name] / seconds['FP32']:.2f}" for name in CANDIDATES[1:]]
            if not arguments.no_memory:
                peak = {name: _measure_memory(name, model_name, size, arguments.batch) for name in CANDIDATES}
                row += [f"{peak['FP32'] / 1e6:.0f} MB"]
                row += [f"{peak[name] / peak['FP32']:.2f}" for name in CANDIDATES[1:]]
            rows.append(row)
            print(" | ".join(row), flush=True)
    table = markdown_table(header, rows)
    print(table)
    if not arguments.no_page:
        options = " --compile" if arguments.compile else ""
        title = "A training step" + (", compiled" if arguments.compile else "")
        threads = torch.get_num_threads()
        conditions = f"batch {arguments.batch}, SGD, {threads} threads, on {machine()}"
        write_section(title, f"`python benchmarks/step_cost.py{options}`, {conditions}.\n\n{table}")


if __name__ == "__main__":
    main()
