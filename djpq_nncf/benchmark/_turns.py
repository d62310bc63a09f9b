# SPDX-License-Identifier: Apache-2.0
"""Times exported files in turn, so that whatever else the machine does meets them alike."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from djpq_nncf.export import Execution, open_runtime

Inputs = Sequence[NDArray[Any]]
Advance = Callable[[int], object]
_WARM_UP = 3
_REQUESTS = 4  # in a round, one after the other; for throughput of each thread


def _ignore(amount: int) -> None:
    pass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of what was measured."""

    median: float
    first_quartile: float
    third_quartile: float


@dataclass(frozen=True)
class Contestant:
    """A file and the inputs it gets, batch first."""

    path: Path
    inputs: Inputs

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [x.shape for x in self.inputs]


def latencies(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    threads: int,
    advance: Advance = _ignore,
) -> list[Spread]:
    """Seconds of one inference on all threads, none under way at the same time; OpenVINO knows the shapes beforehand.

    Raises:
        ExportError: a file is missing or damaged.
    """
    runtimes = [open_runtime(one.path, Execution(threads, 1, one._shapes)) for one in contestants]
    runs = [
        lambda runtime=runtime, inputs=one.inputs: [runtime.run(inputs) for _ in range(_REQUESTS)]
        for runtime, one in zip(runtimes, contestants, strict=True)
    ]
    return [_spread([seconds / _REQUESTS for seconds in values]) for values in take_turns(runs, rounds, advance)]


def throughputs(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    threads: int,
    advance: Advance = _ignore,
) -> list[Spread]:
    """Samples per second with as many requests under way as there are threads, each on one of them.

    Raises:
        ExportError: a file is missing or damaged.
    """
    runtimes = [open_runtime(one.path, Execution(threads, threads, one._shapes)) for one in contestants]
    requests = _REQUESTS * threads
    runs = [
        lambda runtime=runtime, inputs=one.inputs: runtime.run_many(inputs, requests)
        for runtime, one in zip(runtimes, contestants, strict=True)
    ]
    taken = take_turns(runs, rounds, advance)
    return [
        _spread([requests * len(one.inputs[0]) / seconds for seconds in values])
        for one, values in zip(contestants, taken, strict=True)
    ]


def take_turns(runs: Sequence[Callable[[], object]], rounds: int, advance: Advance = _ignore) -> list[list[float]]:
    """Seconds of each run in each round; ``advance`` hears of every round.

    The order is another one in each round, and a run is timed when it follows itself: a small network behind a large
    one would find the caches cold.
    """
    taken: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    shuffle = random.Random(0).shuffle
    for number in range(_WARM_UP + rounds):
        shuffle(order)
        for index in order:
            runs[index]()
            start = time.perf_counter()
            runs[index]()
            if number >= _WARM_UP:
                taken[index].append(time.perf_counter() - start)
        if number >= _WARM_UP:
            advance(1)
    return taken


def _spread(values: Sequence[float]) -> Spread:
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(median, first, third)
