# SPDX-License-Identifier: Apache-2.0
"""The monitor: what it logs and writes, and where it is quiet."""

import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from djpq_nncf.algorithms._progress import somebody_watches
from djpq_nncf.run import RunFolder, RunSettings, TrainingMonitor, compress_run
from tests.run.digits import CONFIG


class Scheduler:
    epoch, global_step = 0, 51


class Controller:
    scheduler = Scheduler()

    def scalars(self) -> dict[str, float]:
        return {"bops_ratio": 0.5, "bops_ratio_asked": 0.02}

    def compression_stage(self) -> None:
        return None


def monitor(**options: Any) -> TrainingMonitor:
    return TrainingMonitor(Controller(), epochs=2, steps_per_epoch=60, **options)  # type: ignore[arg-type]


def test_rows_and_scalars_have_the_same_names() -> None:
    rows: list[dict[str, Any]] = []
    written: dict[str, float] = {}

    class Writer:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            assert global_step == 51
            written[tag] = scalar_value

    with monitor(log=rows.append, writer=Writer(), elapsed=100.0, show=False) as shown:
        shown.step(loss=torch.tensor(2.0, requires_grad=True), task_loss=1.5)
        shown.epoch(accuracy=math.nan)
    step, epoch = rows
    assert (step["event"], step["epoch"], step["step"], step["loss"]) == ("step", 1, 51, 2.0)
    assert epoch["event"] == "epoch"
    assert epoch["accuracy"] is None  # JSON has no NaN
    assert step["seconds"] >= 100
    assert set(written) == ({*step, *epoch} - {"event", "epoch", "step", "seconds"})


def lines_in_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with monitor(show=True) as shown:
        shown.step(loss=2.0, task_loss=1.5, compression_loss=0.5)
        shown.epoch(accuracy=0.975)
        shown.say("half of it")
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n")
    return [line.rstrip() for line in printed.splitlines()]


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_progress_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_in_a_terminal(columns, monkeypatch, capsys)
    assert "half of it" in lines
    assert max(map(len, lines)) <= columns
    text = " ".join(lines)
    losses = ("loss 2.000", "task loss 1.500", "compression loss 0.500")
    for part in ("epoch 1 of 2", "step 51 of 120", "pruning and quantization", *losses, "accuracy 97.50%"):
        assert part in text
    assert re.search(r"BOPs 0.5000 \(0.0200\s+asked\)", text)
    assert re.search(r"0:00:0\d, 0:00:\d\d left", text)


def test_bops_without_a_target(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Controller, "scalars", lambda self: {"bops_ratio": 0.5, "macs_ratio": 1.0})
    text = " ".join(lines_in_a_terminal(80, monkeypatch, capsys))
    assert "BOPs 0.5000, accuracy" in text


@pytest.mark.slow
def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a kernel: one output, which is drawn anew, and no warning."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    source = """
        import warnings
        warnings.simplefilter("error")
        from djpq_nncf.algorithms._progress import track
        from tests.run.test_monitor import monitor
        with monitor() as shown, track("short", 3) as advance:
            shown.step(loss=2.0)
            advance(3)
            shown.epoch(accuracy=0.5)
        """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(source))])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    for kind in ("text/plain", "text/html"):
        assert "step 51 of 120" in output.data[kind]
        assert "accuracy 50.00%" in output.data[kind]


@pytest.mark.parametrize("value", ["", "0", "false", "False"])
def test_ci_that_says_no(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", value)
    assert somebody_watches(Console(force_terminal=True))


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("CI", "1"), ("RANK", "1")])
def test_quiet_in_ci_and_in_workers(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CI", "RANK"):
        monkeypatch.delenv(variable, raising=False)
    assert somebody_watches(Console(force_terminal=True))
    assert somebody_watches(Console(force_jupyter=True))
    assert not somebody_watches(Console(force_terminal=False, force_jupyter=False))
    monkeypatch.setenv(name, value)
    assert not somebody_watches(Console(force_terminal=True))


@pytest.mark.slow
def test_tensorboard(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = RunSettings(CONFIG, "tests.run.digits:network", "tests.run.digits:loaders")
    folder: RunFolder = compress_run(tmp_path, settings, tensorboard=True, say=lambda line: None)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    epochs = [row for row in folder.read_log() if row["event"] == "epoch"]
    values = {event.step: event.value for event in events.Scalars("accuracy")}
    assert values == {row["step"]: pytest.approx(row["accuracy"]) for row in epochs}
    assert {"loss", "bops_ratio", "bops_ratio_asked", "strength"} <= set(events.Tags()["scalars"])
