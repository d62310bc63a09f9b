# SPDX-License-Identifier: Apache-2.0
"""Who is timed when, and what becomes of the times."""

import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from djpq_nncf.benchmark import Contestant, Entry, _turns, latencies, run_benchmark, throughputs
from djpq_nncf.benchmark._run import find_baselines
from djpq_nncf.benchmark._turns import take_turns
from djpq_nncf.capture import capture
from djpq_nncf.export import Execution, export_model, open_runtime


@pytest.fixture(scope="module", params=["xml", "onnx"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("files") / f"net.{request.param}"
    export_model(capture(nn.Sequential(nn.Linear(6, 4), nn.ReLU()).eval(), (torch.randn(2, 6),)), path)
    return path


def test_candidates_take_turns_and_follow_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(_turns.time, "perf_counter", lambda: clock[0])
    names, seconds = "abc", (1.0, 10.0, 100.0)
    order: list[str] = []

    def run(index: int) -> None:
        is_first = not order or order[-1] != names[index]
        order.append(names[index])
        clock[0] += 7 if is_first else seconds[index]

    rounds: list[int] = []
    runs = [lambda index=index: run(index) for index in range(3)]
    taken = take_turns(runs, 40, rounds.append)
    turns = ["".join(order[start : start + 6 : 2]) for start in range(0, len(order), 6)]
    assert order[::2] == order[1::2]
    assert len(turns) == 40 + _turns._WARM_UP
    assert set(turns) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    # one that ends a round and begins the next one is warm at once
    assert [set(values) for values in taken] == [{1.0}, {10.0}, {100.0}]
    assert [len(values) for values in taken] == [40] * 3
    assert rounds == [1] * 40


def test_median_and_quartiles() -> None:
    values = [5.0, 1.0, 9.0, 2.0, 4.0, 7.0, 3.0]
    spread = _turns._spread(values)
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    assert (spread.first_quartile, spread.median, spread.third_quartile) == pytest.approx((first, median, third))


def test_throughput_counts_samples(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once for each run gives samples in a run."""
    clock = iter(range(10**6))
    monkeypatch.setattr(_turns.time, "perf_counter", lambda: float(next(clock)))
    (spread,) = throughputs([Contestant(path, [np.zeros((5, 6), np.float32)])], rounds=2, threads=2)
    assert spread.median == 5 * 2 * _turns._REQUESTS
    (spread,) = latencies([Contestant(path, [np.zeros((5, 6), np.float32)])], rounds=2, threads=1)
    assert spread.median == 1 / _turns._REQUESTS


@pytest.mark.parametrize(
    "execution", [Execution(), Execution(2, 2), Execution(1, 1, [(3, 6)]), Execution(2, 1)], ids=str
)
def test_any_execution_computes_the_same(path: Path, execution: Execution) -> None:
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    runtime = open_runtime(path, execution)
    runtime.run_many([x], 5)
    np.testing.assert_allclose(runtime.run([x])[0], open_runtime(path).run([x])[0], rtol=1e-6)


def test_results_stay_when_the_next_request_runs(path: Path) -> None:
    runtime = open_runtime(path, Execution(1))
    (first,) = runtime.run([np.ones((2, 6), np.float32)])
    before = first.copy()
    runtime.run([np.full((2, 6), 7, np.float32)])
    np.testing.assert_array_equal(first, before)


def test_failing_request_is_heard_of(path: Path) -> None:
    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        open_runtime(path, Execution(1, 1)).run_many([np.zeros((2, 5), np.float32)], 2)


def test_baselines() -> None:
    def entry(name: str, *, baseline: bool = False) -> Entry:
        return Entry(name, Path(name), is_baseline=baseline)

    names = ["first.xml", "second.xml", "other.onnx"]
    assert find_baselines([entry(name) for name in names]) == [0, 0, 2]
    mixed = [
        entry("a.xml", baseline=True),
        entry("b.onnx"),
        entry("c.xml"),
        entry("d.xml", baseline=True),
        entry("e.xml"),
    ]
    assert find_baselines(mixed) == [0, 1, 0, 3, 3]


def test_ratios_are_to_the_baseline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([[2.0, 2.0], [1.0, 1.0], [4.0, 4.0], [1.0, 1.0]])
    monkeypatch.setattr(_turns, "take_turns", lambda runs, rounds, advance: [next(taken) for _ in runs])
    result = run_benchmark([Entry("slow", path), Entry("fast", path)], batch_sizes=[3], rounds=2, threads=1)
    slow, fast = result.rows
    assert (slow.latency_ratio, slow.throughput_ratio, slow.baseline) == (1, 1, "slow")
    assert (fast.latency_ratio, fast.throughput_ratio, fast.baseline) == (0.5, 4, "slow")
    assert fast.latency.median == 1.0 / _turns._REQUESTS
    assert fast.throughput.median == 3 * _turns._REQUESTS
