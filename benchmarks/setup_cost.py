# SPDX-License-Identifier: Apache-2.0
"""What create_compressed_model costs, stage by stage, for networks that get deeper.

    python benchmarks/setup_cost.py

Linear in the size of the network is what it should be: compare the last column of the rows of a family.
"""

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from performance_page import machine, markdown_table, write_section
from torch import nn
from torchvision.models import VisionTransformer

from djpq_nncf import create_compressed_model
from djpq_nncf.algorithms import _create
from djpq_nncf.algorithms.djpq import _build

CONFIG = {"compression": {"algorithm": "djpq"}}
STAGES: dict[str, tuple[tuple[ModuleType, str], ...]] = {
    "capture": ((_create, "capture"),),
    "analysis": ((_build, "analyse_channels"),),
    "placement": ((_build, "place_quantizers"),),
    "insertion": ((_build, "insert"),),
    "initialisation": ((_build, "initialize_weight_ranges"), (_build, "initialize_activation_ranges")),
}
"""Stage -> the functions that do it, by the modules that call them."""
RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
VITS = tuple(f"vit{layers}" for layers in (12, 24, 36, 48))
SAMPLES = 8


@dataclass(frozen=True)
class Cost:
    """Nodes of the captured graph, and seconds of each stage and of everything."""

    nodes: int
    stages: dict[str, float]
    total: float


def make(name: str) -> nn.Module:
    """A ResNet of torchvision, or a ViT of width 192 with that many layers."""
    if not name.startswith("vit"):
        return torchvision.models.get_model(name, weights=None)
    return VisionTransformer(
        image_size=64, patch_size=16, num_layers=int(name[3:]), num_heads=3, hidden_dim=192, mlp_dim=768
    )


@contextmanager
def timed_stages() -> Iterator[tuple[dict[str, float], list[int]]]:
    """Seconds that each stage takes inside, and the size of every graph that is captured."""
    seconds: dict[str, float] = defaultdict(float)
    nodes: list[int] = []

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[stage] += time.perf_counter() - start
            if stage == "capture":
                nodes.append(len(result.graph.nodes))
            return result

        return run

    with ExitStack() as stack:
        for stage, functions in STAGES.items():
            for module, function in functions:
                stack.enter_context(patch.object(module, function, timed(stage, getattr(module, function))))
        yield seconds, nodes


def measure(name: str, size: int) -> Cost:
    """Set a network up once."""
    torch.manual_seed(0)
    model, images = make(name).eval(), torch.randn(SAMPLES, 3, size, size)
    with timed_stages() as (seconds, nodes):
        start = time.perf_counter()
        create_compressed_model(model, CONFIG, init_data=[images])
        total = time.perf_counter() - start
    (count,) = nodes
    return Cost(count, dict(seconds), total)


def row(name: str, costs: list[Cost]) -> list[str]:
    """Medians of several measurements, as text."""
    total = median(cost.total for cost in costs)
    stages = {stage: median(cost.stages[stage] for cost in costs) for stage in STAGES}
    seconds = [*stages.values(), total - sum(stages.values()), total]
    nodes = costs[0].nodes
    return [name, str(nodes), *(f"{value:.2f}" for value in seconds), f"{1000 * total / nodes:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=[*RESNETS, *VITS], metavar="NAME", help="resnet50, vit24, ...")
    parser.add_argument("--size", type=int, default=64, help="of the images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    measure("resnet18", arguments.size)  # imports, and whatever is cached
    header = ["network", "nodes", *STAGES, "rest", "total", "total per node"]
    rows = []
    for name in arguments.networks:
        rows.append(row(name, [measure(name, arguments.size) for _ in range(arguments.rounds)]))
        print(" | ".join(rows[-1]), flush=True)
    table = markdown_table(header, rows)
    print(table)
    if not arguments.no_page:
        conditions = (
            f"seconds, medians of {arguments.rounds}, and milliseconds for each node of the captured graph; {SAMPLES} "
            f"images of {arguments.size}x{arguments.size} to initialise ranges; ViTs of width 192 with as many layers "
            f"as the name says; {torch.get_num_threads()} threads, on {machine()}"
        )
        write_section("Set-up", f"`python benchmarks/setup_cost.py`, {conditions}.\n\n{table}")


if __name__ == "__main__":
    main()
