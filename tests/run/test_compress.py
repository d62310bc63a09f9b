# SPDX-License-Identifier: Apache-2.0
"""A run from settings to files, and what is refused before it begins."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from djpq_nncf.algorithms import load_checkpoint
from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import CaptureError, DataError, DjpqError, RunError
from djpq_nncf.run import CompressionRun, RunFolder, RunSettings, compress_run
from tests.run import tiny
from tests.run.conftest import quiet
from tests.run.tiny import CONFIG, SETTINGS, STEPS


def test_everything_is_in_the_folder(finished: RunFolder) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert {"run.json", "config.json", "log.jsonl", "checkpoint.safetensors", "report.json", "report.html"} <= names
    assert {f"{name}{suffix}" for name in ("fp32", "compressed") for suffix in (".xml", ".bin", ".onnx")} <= names
    assert finished.status == "finished"
    assert json.loads((finished.path / "config.json").read_text()) == CONFIG


def test_what_a_run_was_made_with(finished: RunFolder) -> None:
    manifest = json.loads((finished.path / "run.json").read_text())
    assert "seed" not in CONFIG
    assert manifest["seed"] == NNCFConfig.from_dict(CONFIG).seed
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"djpq-nncf", "torch", "torchvision", "nncf", "openvino", "onnxruntime"} <= set(manifest["versions"])
    assert finished.settings == SETTINGS


def test_the_log_says_how_it_went(finished: RunFolder) -> None:
    rows = finished.read_log()
    events = [row["event"] for row in rows if row["event"] != "step"]
    assert events == ["start", "original", "epoch", "freeze", "epoch", "epoch"]
    assert [(row["epoch"], row["step"]) for row in rows if row["event"] == "epoch"] == [(1, 4), (2, 8), (3, 12)]
    assert [(row["epoch"], row["step"]) for row in rows if row["event"] == "freeze"] == [(2, STEPS + 1)]
    assert 0.0294 <= rows[-1]["bops_ratio"] <= rows[-1]["bops_ratio_asked"] == 0.03
    for row in rows:
        if row["event"] in ("step", "epoch"):
            assert row["loss"] == pytest.approx(row["task_loss"] + row["compression_loss"], abs=1e-5)


@pytest.mark.usefixtures("without_files")
def test_epochs_are_logged_by_their_means(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, float]] = []
    log = CompressionRun.log

    def record(run: CompressionRun, **scalars: Any) -> None:
        steps.append({name: value.item() for name, value in scalars.items()})
        log(run, **scalars)

    monkeypatch.setattr(CompressionRun, "log", record)
    folder = compress_run(out, SETTINGS, say=quiet)
    epochs = [row for row in folder.read_log() if row["event"] == "epoch"]
    for number, row in enumerate(epochs):
        own = steps[number * STEPS : (number + 1) * STEPS]
        for name in ("loss", "task_loss", "compression_loss"):
            assert row[name] == pytest.approx(math.fsum(step[name] for step in own) / STEPS)


def test_a_finished_run_is_left_alone(finished: RunFolder) -> None:
    said: list[str] = []
    before = finished.log_file.read_bytes()
    compress_run(finished.path, SETTINGS, say=said.append)
    assert "is finished" in said[0]
    assert finished.log_file.read_bytes() == before


def test_other_settings_are_refused(finished: RunFolder) -> None:
    other = dataclasses.replace(SETTINGS, config={**CONFIG, "seed": 4}, lr=0.1)
    with pytest.raises(RunError, match=r"lr was 0\.001 and is 0\.1; \$\.seed was 0 and is 4\..*--out"):
        compress_run(finished.path, other, say=quiet)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"thesis\.tex"):
        compress_run(tmp_path, SETTINGS, say=quiet)


def test_another_process_writes_here(tmp_path: Path) -> None:
    with RunFolder(tmp_path).writing(), pytest.raises(RunError, match="Another process writes"):
        compress_run(tmp_path, SETTINGS, say=quiet)


MISTAKES = {
    "model": ({"model": "tests.run.tiny:netwrok"}, CaptureError, "Did you mean 'network'"),
    "data": ({"data": "photos"}, DataError, r"There is no folder photos\."),
    "iterators": ({"data": "tests.run.tiny:iterators"}, DataError, "at its end after one epoch"),
    "weights": ({"weights": "absent.pth"}, DataError, r"absent\.pth cannot be loaded"),
    "train": ({"train": "tests.run.tiny:trian"}, CaptureError, "Did you mean 'train'"),
    "train, no function": ({"train": "tests.run.tiny:STEPS"}, CaptureError, "is a int. Name a function"),
    "train, a module": ({"train": "json"}, CaptureError, r"'json' names no module and something in it\. Write"),
    "torchvision": ({"model": "torchvision:resnet18"}, DataError, "without its weights.*--checkpoint FILE"),
}


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize(("wrong", "error", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_does_not_begin_a_run(wrong: Any, error: type[DjpqError], message: str, out: Path) -> None:
    with pytest.raises(error, match=message):
        compress_run(out, dataclasses.replace(SETTINGS, **wrong), say=quiet)
    assert not RunFolder(out).exists
    if "model" in wrong:
        assert compress_run(out, SETTINGS, say=quiet).status == "finished"


@pytest.mark.parametrize("device", ["cudaa", "meta:x", "cuda:99"])
def test_a_device_that_is_not_there(device: str, out: Path) -> None:
    with pytest.raises(RunError, match=rf"--device '{device}' cannot be used: .*Write cpu or cuda"):
        compress_run(out, SETTINGS, device=device, say=quiet)


@pytest.mark.usefixtures("without_files")
def test_a_run_that_completed_no_epoch_is_begun_anew(out: Path) -> None:
    with pytest.raises(DataError, match="has a label 7, and the network 4 outputs"):
        compress_run(out, dataclasses.replace(SETTINGS, data="tests.run.tiny:large_labels"), say=quiet)
    folder = compress_run(out, SETTINGS, say=quiet)
    assert folder.settings == SETTINGS
    events = [row["event"] for row in folder.read_log()]
    assert (events.count("start"), events.count("original"), events.count("resume")) == (1, 1, 0)


@pytest.mark.usefixtures("without_files")
def test_a_training_of_ones_own(out: Path) -> None:
    settings = dataclasses.replace(SETTINGS, train="tests.run.tiny:train", lr=0.01)
    folder = compress_run(out, settings, say=quiet)
    assert folder.status == "finished"
    assert "accuracy" not in folder.read_log()[-1]
    assert "loss" in folder.read_log()[-1]


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize(("train", "done"), [("do_nothing", "no"), ("break_off", "1")])
def test_a_training_that_leaves_epochs_out(train: str, done: str, out: Path) -> None:
    settings = dataclasses.replace(SETTINGS, train=f"tests.run.tiny:{train}")
    with pytest.raises(RunError, match=rf"'tests\.run\.tiny:{train}' trained {done} of 3 epochs.*run\.epochs"):
        compress_run(out, settings, say=quiet)
    assert RunFolder(out).status == "training"


@pytest.mark.usefixtures("without_files")
def test_a_training_that_was_mended_continues(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SETTINGS, train="tests.run.tiny:break_off")
    with pytest.raises(RunError, match="1 of 3 epochs"):
        compress_run(out, settings, say=quiet)
    monkeypatch.setattr(tiny, "break_off", tiny.train)
    folder = compress_run(out, settings, say=quiet)
    assert load_checkpoint(folder.checkpoint).extra["epochs_done"] == 3


def test_weights_of_another_network(tmp_path: Path, out: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    settings = dataclasses.replace(SETTINGS, weights=str(tmp_path / "w.pth"))
    with pytest.raises(DataError, match=r"w\.pth cannot be loaded"):
        compress_run(out, settings, say=quiet)


@pytest.mark.usefixtures("without_files")
def test_paths_are_stored_as_absolute_ones(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(tiny.network().state_dict(), "w.pth")
    folder = compress_run(out, dataclasses.replace(SETTINGS, weights="w.pth"), say=quiet)
    assert folder.settings.weights == str(tmp_path / "w.pth")
    (tmp_path / "photos").mkdir()
    assert RunSettings(CONFIG, "a:b", "photos").with_absolute_paths().data == str(tmp_path / "photos")
    assert SETTINGS.with_absolute_paths() == SETTINGS


@pytest.mark.usefixtures("without_files")
def test_tensorboard_is_closed_and_continues(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    made: list[Any] = []

    class Writer:
        def __init__(self, folder: Path, purge_step: int) -> None:
            assert folder == out / "tensorboard"
            self.purge_step, self.closed, self.steps = purge_step, False, []  # type: ignore[var-annotated]
            made.append(self)

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.steps.append(global_step)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(tensorboard, "SummaryWriter", Writer)
    settings = dataclasses.replace(SETTINGS, train="tests.run.tiny:break_off")
    with pytest.raises(RunError, match="1 of 3 epochs"):
        compress_run(out, settings, tensorboard=True, say=quiet)
    monkeypatch.setattr(tiny, "break_off", tiny.train)
    compress_run(out, settings, tensorboard=True, say=quiet)
    assert [(writer.purge_step, writer.closed) for writer in made] == [(1, True), (STEPS + 1, True)]
    assert min(made[1].steps) >= made[1].purge_step


def test_tensorboard_is_missing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match=r"pip install 'djpq-nncf\[tensorboard\]'"):
        compress_run(out, SETTINGS, tensorboard=True, say=quiet)
    assert not RunFolder(out).exists
