# SPDX-License-Identifier: Apache-2.0
"""Grids, fronts, queues, and sweeps whose runs fail or are killed."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from djpq_nncf.cli import app
from djpq_nncf.errors import ConfigError, DataError, RunError
from djpq_nncf.sweep import (
    LocalQueue,
    RunOutcome,
    SharedQueue,
    Trial,
    best_run,
    expand_grid,
    front,
    parse_setting,
    read_outcomes,
    write_sweep_page,
)
from tests.run.digits import CONFIG

REPOSITORY = Path(__file__).parents[2]
COMPRESS = ["--model", "tests.run.digits:network", "--data", "tests.run.digits:loaders"]


def outcome(name: str, bops: float, lost: float | None) -> RunOutcome:
    return RunOutcome(name, Path(name), bops, 0.5, 0.1, None if lost is None else 0.9 - lost / 100, lost)


OUTCOMES = [outcome("a", 0.02, 0.1), outcome("b", 0.01, 0.3), outcome("c", 0.01, 0.2), outcome("d", 0.005, 0.3)]


def test_every_combination() -> None:
    settings = [parse_setting("compression.target.bops_ratio=0.02,0.01"), parse_setting("seed=0,1")]
    trials = expand_grid(CONFIG, settings)
    assert [trial.name for trial in trials] == [
        f"bops_ratio={ratio},seed={seed}" for ratio in (0.02, 0.01) for seed in (0, 1)
    ]
    assert trials[3].config["compression"]["target"]["bops_ratio"] == 0.01
    assert trials[3].config["seed"] == 1
    assert CONFIG["seed"] == 3


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("k=1,2.5", (1, 2.5)),
        ("k=CPU,NPU", ("CPU", "NPU")),
        ("k=true,null", (True, None)),
        ("k=[1,2],[3]", ([1, 2], [3])),
    ],
)
def test_values(text: str, values: tuple[Any, ...]) -> None:
    assert parse_setting(text) == ("k", values)


@pytest.mark.parametrize("text", ["seed", "=1", "seed="])
def test_no_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="--set is"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed.x=1", "no such place"),
        ("compression.0.target=1", "no such place"),
        ("compression.targte.bops_ratio=1", "target"),
        ("seed=1,1", "twice"),
    ],
)
def test_settings_that_lead_nowhere(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_grid(CONFIG, [parse_setting(text)])


def test_front_and_choice() -> None:
    assert [entry.name for entry in front(OUTCOMES)] == ["d", "c", "a"]
    assert best_run(OUTCOMES, most_lost=0.2).name == "c"
    assert best_run(OUTCOMES, most_lost=0.3).name == "d"
    assert best_run(OUTCOMES, most_bops=0.01).name == "c"
    assert best_run(OUTCOMES, most_lost=0.3, most_bops=0.02).name == "d"
    with pytest.raises(DataError, match=r"at most 0\.05 points lost"):
        best_run(OUTCOMES, most_lost=0.05)
    assert front([outcome("x", 0.1, None)]) == []


@pytest.mark.parametrize("outcomes", [OUTCOMES, OUTCOMES[:1], [outcome("<script>", 0.1, None)] * 2, OUTCOMES[:1] * 2])
def test_page(tmp_path: Path, outcomes: list[RunOutcome]) -> None:
    page = write_sweep_page(outcomes, tmp_path).read_text()
    assert page.count("<circle") == (len(outcomes) if len(outcomes) > 1 and outcomes[0].lost is not None else 0)
    assert "<script" not in page
    assert "http:" not in page
    assert "nan" not in page


def test_each_trial_goes_to_one_worker(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trials = [Trial(f"t{number}", {}) for number in range(6)]
    queues = [
        SharedQueue(str(tmp_path / "sweep.log"), "sweep", trials, is_running=lambda trial: True) for _ in range(2)
    ]
    taken: list[str] = []

    def work(trial: Trial) -> bool:
        taken.append(trial.name)
        time.sleep(0.05)
        return trial.name != "t3"

    threads = [threading.Thread(target=queue.run, args=(work, 1)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [trial.name for trial in trials]
    # begun again, only what failed is left
    taken.clear()
    SharedQueue(str(tmp_path / "sweep.log"), "sweep", trials, is_running=lambda trial: True).run(work, 2)
    assert taken == ["t3"]


def test_a_trial_whose_process_died_is_tried_again(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trials = [Trial(f"t{number}", {}) for number in range(3)]
    taken: list[str] = []

    def work(trial: Trial) -> bool:
        taken.append(trial.name)
        if trial.name == "t1" and len(taken) == 2:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        SharedQueue(str(tmp_path / "sweep.log"), "sweep", trials, is_running=lambda trial: False).run(work, 1)
    SharedQueue(str(tmp_path / "sweep.log"), "sweep", trials, is_running=lambda trial: False).run(work, 1)
    assert sorted(taken) == ["t0", "t1", "t1", "t2"]


@pytest.mark.parametrize("storage", ["sqlite:///sweep.db", "{}/nowhere/sweep.log", "nonsense://x"])
def test_a_storage_that_cannot_be_opened(tmp_path: Path, storage: str) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(RunError, match="cannot be opened"):
        SharedQueue(storage.format(tmp_path), "sweep", [], is_running=lambda trial: False)


def test_local_queue() -> None:
    names: list[str] = []

    def work(trial: Trial) -> bool:
        names.append(trial.name)
        return False

    LocalQueue([Trial("a", {}), Trial("b", {})]).run(work, 1)
    assert names == ["a", "b"]


def sweep(out: Path, config: Path, *options: str) -> list[str]:
    return ["sweep", str(config), "--out", str(out), *options, "--", *COMPRESS]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.mark.slow
def test_one_run_killed_and_one_out_of_reach(tmp_path: Path, config: Path) -> None:
    """The others are finished, both are told apart, and the same command finishes the killed one."""
    out = tmp_path / "sweep"
    options = ("--budgets", "0.05,1e-6", "--seeds", "0", "--most-lost", "100")
    process = subprocess.Popen(
        [sys.executable, "-m", "djpq_nncf", *sweep(out, config, *options)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = out / "runs" / "bops_ratio=0.05,seed=0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = {int(pid) for task in children.parents[1].iterdir() for pid in (task / "children").read_text().split()}
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "bops_ratio=0.05,seed=0 failed: it was killed by signal 9; the same command continues it" in text
    assert "bops_ratio=1e-06,seed=0 failed: Error:" in text
    assert "out of reach" in text

    again = CliRunner().invoke(app, sweep(out, config, *options))
    assert again.exit_code == 3, again.output
    assert "bops_ratio=0.05,seed=0: finished" in again.output
    assert f"Best: {out / 'runs' / 'bops_ratio=0.05,seed=0'}" in again.output
    (found_outcome,) = read_outcomes((out / "runs").iterdir())
    assert math.isclose(found_outcome.bops_ratio, 0.05, rel_tol=0.02)
    assert (out / "sweep.html").is_file()

    other = CliRunner().invoke(app, [*sweep(out, config, *options), "--lr", "0.1"])
    assert other.exit_code == 1
    assert "other arguments" in other.output


def test_nothing_to_sweep_over(tmp_path: Path, config: Path) -> None:
    result = CliRunner().invoke(app, sweep(tmp_path / "out", config))
    assert result.exit_code == 1
    assert "nothing to sweep over" in result.output
