# SPDX-License-Identifier: Apache-2.0
"""Grids, fronts, and a real sweep."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from djpq_nncf.cli import app
from djpq_nncf.errors import ConfigError, DataError
from djpq_nncf.sweep import (
    RunOutcome,
    best_run,
    expand_grid,
    front,
    parse_setting,
    read_outcomes,
)
from tests.sweep.tiny import CONFIG
from tests.sweep.workers import Worker, until

COMPRESS = ["--model", "tests.sweep.tiny:network", "--data", "tests.sweep.tiny:loaders"]


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


@pytest.mark.parametrize("limits", [{"most_lost": 1.0}, {"most_bops": 0.02}])
def test_no_accuracy_to_choose_by(limits: dict[str, float]) -> None:
    with pytest.raises(DataError, match="logged an accuracy"):
        best_run([outcome("x", 0.01, None), outcome("y", 0.01, None)], **limits)


@pytest.mark.slow
def test_one_run_killed_and_one_out_of_reach(tmp_path: Path) -> None:
    """The others are finished, both are told apart, and the same command finishes the killed one."""
    config, out = tmp_path / "config.json", tmp_path / "sweep"
    config.write_text(json.dumps(CONFIG))
    within, beyond = "bops_ratio=0.05,seed=0", "bops_ratio=1e-06,seed=0"
    options = ["--budgets", "0.05,1e-6", "--seeds", "0", "--most-lost", "100", "--jobs", "2"]
    command = ["sweep", str(config), "--out", str(out), *options, "--", *COMPRESS]
    worker = Worker(command, tmp_path / "worker.txt")
    until((out / "runs" / within / "log.jsonl").is_file)
    (run,) = (pid for pid in worker.children() if within in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(run, signal.SIGKILL)
    assert worker.wait() == 3
    assert f"{within} failed: it was killed by signal 9; the same command continues it" in worker.text
    assert f"{beyond} failed: Error:" in worker.text
    assert "out of reach" in worker.text

    again = CliRunner().invoke(app, command)
    assert again.exit_code == 3, again.output
    assert f"{within}: finished" in again.output
    assert f"Best: {out / 'runs' / within}" in again.output
    (found,), damaged = read_outcomes((out / "runs").iterdir())
    assert damaged == {}
    assert math.isclose(found.bops_ratio, 0.05, rel_tol=0.02)
    assert (out / "sweep.html").is_file()


def test_a_key_that_is_set_twice() -> None:
    with pytest.raises(ConfigError, match="sets seed twice"):
        expand_grid(CONFIG, [("seed", (0,)), ("seed", (1,))])
