# SPDX-License-Identifier: Apache-2.0
"""Sweeps with damaged folders, full disks and wrong arguments: one clear message each, and the rest goes on."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from djpq_nncf.cli import app
from djpq_nncf.sweep import LocalQueue, SweepFolder, Trial, run_sweep
from tests.disk import fill, small_disk
from tests.run.digits import CONFIG
from tests.sweep.conftest import Fakes

COMPRESS = ("--model", "m:n", "--data", "m:d")


def sweep(out: Path, config: Path, *options: str, compress: tuple[str, ...] = COMPRESS) -> Result:
    return CliRunner().invoke(app, ["sweep", str(config), "--out", str(out), *options, "--", *compress])


def test_a_run_that_fails(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    """The reason is its last line in words; the others are finished."""
    result = sweep(tmp_path / "sweep", config, "--seeds", "0,13,1")
    assert result.exit_code == 3
    assert "seed=13: failed, Error: seed 13 is out of reach. (exit code 1; all of it in " in result.output
    assert "seed=0: finished" in result.output
    assert (tmp_path / "sweep" / "output" / "seed=13.txt").read_text().endswith("╰──╯\n")
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "<dt>seed=13</dt><dd>Error: seed 13" in page
    assert sorted(fakes.ended) == ["seed=0", "seed=1"]


def _other_version(run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "format": 99}))


def _no_words(run: Path) -> None:
    (run / "run.json").write_text("{")


def _no_epoch(run: Path) -> None:
    (run / "log.jsonl").write_text('{"event": "epoch", "step": 1}\n')


def _foreign_log(run: Path) -> None:
    (run / "log.jsonl").write_text("3\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_version, "format 99"),
        (_no_words, "run.json"),
        (_no_epoch, "does not say what its last epoch came to"),
        (_foreign_log, "log.jsonl"),
    ],
)
def test_a_damaged_run(tmp_path: Path, config: Path, fakes: Fakes, damage: Any, message: str) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, config, "--seeds", "0,1").exit_code == 0
    damage(out / "runs" / "seed=1")
    result = sweep(out, config, "--seeds", "0,1,2")
    assert result.exit_code == 3, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("seed=1 failed: ")]
    assert message in line
    assert "seed=2: finished" in result.output
    page = (out / "sweep.html").read_text()
    assert "2 finished runs" in page
    assert "<dt>seed=1</dt>" in page


def test_output_that_cannot_be_written(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    out = tmp_path / "sweep"
    (out / "output" / "seed=13.txt").mkdir(parents=True)
    result = sweep(out, config, "--seeds", "13,1")
    assert result.exit_code == 3
    assert "seed=13: failed, Error: seed 13 is out of reach. (exit code 1)" in result.output
    assert "seed=1: finished" in result.output


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"compress": []}', "null"])
def test_a_damaged_manifest(tmp_path: Path, config: Path, fakes: Fakes, text: str) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, config, "--seeds", "0").exit_code == 0
    (out / "sweep.json").write_text(text)
    result = sweep(out, config, "--seeds", "0")
    assert result.exit_code == 1
    assert "sweep.json is damaged" in result.output
    (out / "sweep.json").unlink()
    assert sweep(out, config, "--seeds", "0").exit_code == 0
    assert len(fakes.begun) == 1


def test_other_arguments(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    """After a mistake the corrected command may begin; once a run came to something it may not."""
    out = tmp_path / "sweep"
    wrong = ("--model", "m:x", "--data", "m:d")
    assert sweep(out, config, "--seeds", "13", compress=wrong).exit_code == 3
    assert sweep(out, config, "--seeds", "0").exit_code == 0
    result = sweep(out, config, "--seeds", "0", compress=wrong)
    assert result.exit_code == 1
    assert "whose runs have other arguments: --model m:n --data m:d" in result.output


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        (("--modle", "m:n", "--data", "m:d"), "No such option: --modle"),
        (("--model", "m:n"), "--data"),
        (("--model", "m:n", "--data", "m:d", "more"), "unexpected extra argument"),
        (("--model", "m:n", "--data", "m:d", "--lr", "much"), "--lr"),
        (("--model", "m:n", "--data", "m:d", "--out", "x"), "in front of `--`"),
    ],
)
def test_wrong_options_of_compress(
    tmp_path: Path, config: Path, fakes: Fakes, compress: tuple[str, ...], message: str
) -> None:
    """It is wrong usage, found before anything is written."""
    result = sweep(tmp_path / "sweep", config, "--seeds", "0,1", compress=compress)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "sweep").exists()


def test_help_shows_a_whole_command() -> None:
    result = CliRunner().invoke(app, ["sweep", "--help"])
    usage = " ".join(result.output.split())
    assert "sweep CONFIG --out FOLDER [OPTIONS] -- --model MODEL --data DATA [OPTIONS OF compress]" in usage


def test_nothing_to_sweep_over(tmp_path: Path, config: Path) -> None:
    result = sweep(tmp_path / "out", config)
    assert result.exit_code == 1
    assert "nothing to sweep over" in result.output


def test_no_run_within_the_limits(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    """The page is there all the same."""
    result = sweep(tmp_path / "sweep", config, "--seeds", "0,1", "--most-lost", "0.01")
    assert result.exit_code == 1
    assert "No finished run has at most 0.01 points lost" in result.output
    assert "No run has at most 0.01 points lost" in (tmp_path / "sweep" / "sweep.html").read_text()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_output_into_a_file(tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal the bar is drawn there, and every line still arrives in the file."""
    for name, value in {"CI": "", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    trials = [Trial("a", CONFIG), Trial("b", CONFIG)]
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(trials, COMPRESS)
    terminal, output = _Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", output)
    run_sweep(folder, trials, LocalQueue(folder, trials), COMPRESS, jobs=1)
    monkeypatch.undo()
    assert output.getvalue() == "a: finished\nb: finished\n"
    assert "finished" not in terminal.getvalue()
    assert "sweep" in terminal.getvalue()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "256k") as path:
        yield path


def test_full_disk(config: Path, fakes: Fakes, disk: Path) -> None:
    """What is finished stays, each other run says what is missing, and the same command continues."""
    out = disk / "sweep"
    assert sweep(out, config, "--seeds", "0").exit_code == 0
    before = SweepFolder(out).id
    ballast = fill(disk)
    full = sweep(out, config, "--seeds", "0,1")
    assert full.exit_code == 1
    assert full.output.count("No space left on device") == 1, full.output
    assert "Free some space and run the same command" in full.output
    ballast.unlink()
    assert SweepFolder(out).id == before
    again = sweep(out, config, "--seeds", "0,1")
    assert again.exit_code == 0, again.output
    assert fakes.begun.count("seed=0") == 1


def test_disk_that_fills_during_a_run(config: Path, fakes: Fakes, disk: Path) -> None:
    out = disk / "sweep"
    (fakes.path / "finished" / "big.json").write_bytes(bytes(150 * 1024))  # two of them do not fit
    full = sweep(out, config, "--seeds", "0,1")
    assert full.exit_code in (1, 3)
    assert "seed=0: finished" in full.output
    assert "seed=1: failed, OSError: [Errno 28] No space left on device" in full.output
    shutil.rmtree(out / "runs" / "seed=1")
    (fakes.path / "finished" / "big.json").write_bytes(b"")
    again = sweep(out, config, "--seeds", "0,1")
    assert again.exit_code == 0, again.output
    assert fakes.begun == ["seed=0", "seed=1", "seed=1"]


def test_runs_that_were_made_with_another_config(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    """What the sweep does not vary is not in the names of its runs."""
    out = tmp_path / "sweep"
    assert sweep(out, config, "--seeds", "0,1").exit_code == 0
    config.write_text(json.dumps({**CONFIG, "target_device": "CPU"}))
    changed = sweep(out, config, "--seeds", "0,1")
    assert changed.exit_code == 1
    assert "$.target_device was 'ANY' and is 'CPU'" in changed.output
    config.write_text(json.dumps(CONFIG))
    assert sweep(out, config, "--seeds", "0,1").exit_code == 0
    assert fakes.begun == ["seed=0", "seed=1"]


def test_the_config_is_that_of_the_trial(tmp_path: Path, config: Path, fakes: Fakes) -> None:
    assert sweep(tmp_path / "sweep", config, "--seeds", "7").exit_code == 0
    written = json.loads((tmp_path / "sweep" / "configs" / "seed=7.json").read_text())
    assert written == {**CONFIG, "seed": 7}
