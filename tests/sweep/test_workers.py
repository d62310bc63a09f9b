# SPDX-License-Identifier: Apache-2.0
"""Sweeps of several processes, and of processes that are killed or interrupted."""

import os
import signal
import sys
from pathlib import Path

import pytest

from djpq_nncf.sweep import _sweep
from tests.sweep.conftest import Fakes
from tests.sweep.workers import Worker, start_together, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")
NAMES = [f"seed={seed}" for seed in range(4)]


@pytest.fixture(autouse=True)
def quick(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sweep, "_POLL_SECONDS", 0.05)


def sweep(tmp_path: Path, config: Path, *options: str, seeds: str = "0,1,2,3") -> list[str]:
    folder = str(tmp_path / "sweep")
    return ["sweep", str(config), "--out", folder, "--seeds", seeds, *options, "--", "--model", "m:n", "--data", "m:d"]


def shared(tmp_path: Path, config: Path, *options: str) -> list[str]:
    pytest.importorskip("optuna")
    return sweep(tmp_path, config, "--storage", str(tmp_path / "journal"), *options)


def table(text: str) -> str:
    return text[text.index("front") : text.index("Wrote")]


def test_two_workers_share_a_sweep(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    """Each run is made once, and both arrive at the same table."""
    first, second = start_together([shared(tmp_path, config)] * 2, tmp_path)
    assert (first.wait(), second.wait()) == (0, 0), first.text + second.text
    assert sorted(fakes.begun) == NAMES
    assert table(first.text) == table(second.text)
    assert "seed=3" in table(first.text)
    # begun again, nothing is left
    assert Worker(shared(tmp_path, config), tmp_path / "again.txt").wait() == 0
    assert len(fakes.begun) == 4


@pytest.mark.parametrize("with_runs", [True, False], ids=["with its run", "alone"])
def test_the_other_worker_takes_over(tmp_path: Path, config: Path, fakes: Fakes, with_runs: bool) -> None:
    """One of two is killed in the middle of a run; that run goes on by itself where only its parent was killed."""
    fakes.hold()
    first, second = start_together([shared(tmp_path, config)] * 2, tmp_path)
    until(lambda: len(fakes.begun) == 2)
    first.kill(with_runs=with_runs)
    fakes.go_on()
    assert second.wait() == 0, second.text
    assert sorted(fakes.ended) == NAMES
    assert len(fakes.begun) == (5 if with_runs else 4)
    assert all(name in table(second.text) for name in NAMES)


def test_all_are_killed_and_one_begins_again(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    fakes.hold()
    workers = start_together([shared(tmp_path, config)] * 2, tmp_path)
    until(lambda: len(fakes.begun) == 2)
    for worker in workers:
        worker.kill(with_runs=True)
    fakes.go_on()
    again = Worker(shared(tmp_path, config), tmp_path / "again.txt")
    assert again.wait() == 0, again.text
    assert sorted(fakes.ended) == NAMES


@pytest.mark.parametrize(
    ("storage", "sent"),
    [(False, signal.SIGINT), (True, signal.SIGINT), (False, signal.SIGTERM)],
    ids=["local", "shared", "terminated"],
)
def test_interrupt_ends_the_runs(
    tmp_path: Path, config: Path, fakes: Fakes, storage: bool, sent: signal.Signals
) -> None:
    """No other run begins, those that run end, and the same command continues."""
    fakes.hold()
    command = shared(tmp_path, config, "--jobs", "2") if storage else sweep(tmp_path, config, "--jobs", "2")
    worker = Worker(command, tmp_path / "worker.txt")
    until(lambda: len(fakes.begun) == 2)
    runs = worker.children()
    os.kill(worker.pid, sent)
    assert worker.wait() == 130
    assert "The same command continues" in worker.text
    assert "failed" not in worker.text
    assert len(runs) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in runs)
    assert len(fakes.begun) == 2
    fakes.go_on()
    assert Worker(command, tmp_path / "again.txt").wait() == 0
    assert sorted(fakes.ended) == NAMES


def test_two_local_sweeps_in_one_folder(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    """Without a storage they do not wait for each other, and still no run is made twice."""
    fakes.hold()
    first = Worker(sweep(tmp_path, config, seeds="0"), tmp_path / "first.txt")
    until(lambda: len(fakes.begun) == 1)
    second = Worker(sweep(tmp_path, config, seeds="0"), tmp_path / "second.txt")
    assert second.wait() == 3
    assert "1 of the runs are with another process" in second.text
    fakes.go_on()
    assert first.wait() == 0
    assert fakes.begun == ["seed=0"]
