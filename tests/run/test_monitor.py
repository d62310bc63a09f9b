# SPDX-License-Identifier: Apache-2.0
"""The monitor: what it logs and writes, and where it is quiet."""

import math
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


def test_a_line_that_somebody_can_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with monitor(show=True) as shown:
        shown.step(loss=2.0)
        shown.say("half of it")
    printed = capsys.readouterr().err
    assert "half of it" in printed
    for part in ("epoch 1 of 2, pruning and quantization", "loss 2.000", "BOPs 0.5000 of 0.0200"):
        assert part in printed


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("RANK", "1")])
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
