# SPDX-License-Identifier: Apache-2.0
"""Which process gets which trial."""

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from djpq_nncf.errors import RunError
from djpq_nncf.sweep import Claim, LocalQueue, SharedQueue, SweepFolder, Trial
from djpq_nncf.sweep._folder import write_whole
from tests.run.digits import CONFIG
from tests.sweep.conftest import Fakes

TRIALS = [Trial(f"t{number}", CONFIG) for number in range(4)]


def begun(path: Path, trials: Sequence[Trial] = TRIALS) -> SweepFolder:
    folder = SweepFolder(path)
    folder.begin(trials, ["--lr", "1"])
    return folder


def finish(fakes: Fakes, folder: SweepFolder, claim: Claim) -> None:
    shutil.copytree(fakes.path / "finished", folder.run(claim.trial.name).path)


@pytest.fixture
def journal(tmp_path: Path) -> str:
    pytest.importorskip("optuna")
    return str(tmp_path / "journal")


def taken(queue: LocalQueue | SharedQueue) -> list[Claim]:
    claims = []
    while (claim := queue.take()) is not None:
        claims.append(claim)
    return claims


def names(claims: Sequence[Claim]) -> list[str]:
    return [claim.trial.name for claim in claims]


def test_local_queue(tmp_path: Path) -> None:
    folder = begun(tmp_path / "sweep")
    queue = LocalQueue(folder, TRIALS)
    claims = taken(queue)
    assert names(claims) == ["t0", "t1", "t2", "t3"]
    assert taken(LocalQueue(folder, TRIALS)) == []
    queue.end(claims[0], None)
    queue.end(claims[1], "bad luck")
    assert queue.failures() == {"t1": "bad luck"}
    assert names(taken(LocalQueue(folder, TRIALS))) == ["t0", "t1"]


def test_threads_of_two_workers(tmp_path: Path, journal: str, fakes: Fakes) -> None:
    folder = begun(tmp_path / "sweep")
    queues = [SharedQueue(journal, folder, TRIALS) for _ in range(2)]
    ran: list[str] = []

    def work(queue: SharedQueue) -> None:
        while (claim := queue.take()) is not None:
            ran.append(claim.trial.name)
            finish(fakes, folder, claim)
            queue.end(claim, None)

    threads = [threading.Thread(target=work, args=(queue,)) for queue in queues * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == ["t0", "t1", "t2", "t3"]
    assert not any(queue.waits() for queue in queues)


def test_a_failure_is_known_to_all_and_tried_by_later_ones(tmp_path: Path, journal: str, fakes: Fakes) -> None:
    folder = begun(tmp_path / "sweep")
    first, second = (SharedQueue(journal, folder, TRIALS[:2]) for _ in range(2))
    claim, other = first.take(), second.take()
    assert claim is not None
    assert other is not None
    assert second.waits()
    first.end(claim, "bad luck")
    finish(fakes, folder, other)
    second.end(other, None)
    assert first.take() is None
    assert second.take() is None
    assert first.failures() == second.failures() == {"t0": "bad luck"}
    assert not second.waits()
    third = SharedQueue(journal, folder, TRIALS[:2])
    assert third.failures() == {}
    assert names(taken(third)) == ["t0"]


def test_a_trial_whose_process_died(tmp_path: Path, journal: str) -> None:
    """Its lock is free, and a process which is there already may take it."""
    folder = begun(tmp_path / "sweep")
    first, second = (SharedQueue(journal, folder, TRIALS[:1]) for _ in range(2))
    claim = first.take()
    assert claim is not None
    assert second.take() is None
    claim.lock.release()
    again = second.take()
    assert again is not None
    assert again.record.number != claim.record.number
    states = [trial.state.name for trial in again.record.study.get_trials()]
    assert states == ["FAIL", "RUNNING"]


def test_a_run_that_outlives_its_sweep(tmp_path: Path) -> None:
    folder = begun(tmp_path / "sweep")
    with folder.run("t0").writing():
        assert names(taken(LocalQueue(folder, TRIALS))) == ["t1", "t2", "t3"]
    assert names(taken(LocalQueue(folder, TRIALS[:1]))) == ["t0"]


def test_another_grid_in_the_same_storage(tmp_path: Path, journal: str, fakes: Fakes) -> None:
    """Values that were added are run, values that were removed are left alone, and back again."""
    for trials, expected in ((TRIALS[:2], ["t0", "t1"]), (TRIALS[1:], ["t2", "t3"]), (TRIALS, [])):
        folder = begun(tmp_path / "sweep", trials)
        queue = SharedQueue(journal, folder, trials)
        claims = taken(queue)
        assert names(claims) == expected
        for claim in claims:
            finish(fakes, folder, claim)
            queue.end(claim, None)


def test_sweeps_of_one_name_in_one_storage(tmp_path: Path, journal: str) -> None:
    first, second = (SharedQueue(journal, begun(tmp_path / place / "sweep"), TRIALS) for place in ("a", "b"))
    for claim in taken(first):
        first.end(claim, "bad luck")
    assert second.failures() == {}
    assert len(taken(second)) == 4


def test_a_run_folder_that_was_removed(tmp_path: Path, journal: str, fakes: Fakes) -> None:
    folder = begun(tmp_path / "sweep")
    queue = SharedQueue(journal, folder, TRIALS)
    for claim in taken(queue):
        finish(fakes, folder, claim)
        queue.end(claim, None)
    shutil.rmtree(folder.run("t2").path)
    assert names(taken(SharedQueue(journal, folder, TRIALS))) == ["t2"]


@pytest.mark.parametrize("storage", ["sqlite:///sweep.db", "{}/nowhere/sweep.log", "nonsense://x"])
def test_a_storage_that_cannot_be_opened(tmp_path: Path, storage: str) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(RunError, match="cannot be opened"):
        SharedQueue(storage.format(tmp_path), begun(tmp_path / "sweep"), [])


def test_a_storage_that_is_lost(tmp_path: Path, journal: str) -> None:
    queue = SharedQueue(journal, begun(tmp_path / "sweep"), TRIALS)
    Path(journal).unlink()
    with pytest.raises(RunError, match="cannot be used any more"):
        queue.take()


def test_a_damaged_storage(tmp_path: Path, journal: str) -> None:
    Path(journal).write_text("{\n{\n")
    with pytest.raises(RunError, match="damaged file may be removed"):
        SharedQueue(journal, begun(tmp_path / "sweep"), TRIALS)


def test_files_that_several_write_at_once(tmp_path: Path) -> None:
    """Each is whole, and nobody takes away what another one is about to move into place."""
    path = tmp_path / "sweep.html"

    def write(text: str) -> None:
        for _ in range(100):
            write_whole(path, text)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ("a" * 10_000, "b" * 20_000, "c", "d")))
    assert path.read_text() in ("a" * 10_000, "b" * 20_000, "c", "d")
    assert list(tmp_path.iterdir()) == [path]
