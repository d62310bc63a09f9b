# SPDX-License-Identifier: Apache-2.0
"""A run from settings to files, interrupted and continued."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from djpq_nncf.errors import CheckpointError, DataError, RunError
from djpq_nncf.run import RunFolder, RunSettings, compress_run, export_run, verify_run
from djpq_nncf.run import _finish as finish_module
from djpq_nncf.run import _run as run_module
from tests.run.digits import CONFIG

SETTINGS = RunSettings(CONFIG, "tests.run.digits:network", "tests.run.digits:loaders")


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return compress_run(tmp_path_factory.mktemp("runs") / "whole", SETTINGS, say=quiet)


def test_everything_is_in_the_folder(finished: RunFolder) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert {"run.json", "config.json", "log.jsonl", "checkpoint.safetensors", "report.json", "report.html"} <= names
    assert {f"{name}{suffix}" for name in ("fp32", "compressed") for suffix in (".xml", ".bin", ".onnx")} <= names
    assert finished.status == "finished"
    assert json.loads((finished.path / "config.json").read_text()) == CONFIG


def test_the_log_says_how_it_went(finished: RunFolder) -> None:
    rows = finished.read_log()
    assert [row["event"] for row in rows if row["event"] != "step"] == ["start", "original", "epoch", "epoch", "epoch"]
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == [1, 2, 3]
    assert rows[-1]["step"] == 48
    assert 0.049 <= rows[-1]["bops_ratio"] <= rows[-1]["bops_ratio_asked"] == 0.05
    first = next(row for row in rows if row["event"] == "step")
    assert first["loss"] == pytest.approx(first["task_loss"] + first["compression_loss"], abs=1e-5)


def test_files_agree_and_can_be_written_again(finished: RunFolder) -> None:
    before = (finished.path / "compressed.onnx").read_bytes()
    export_run(finished.path, suffixes=[".onnx"])
    assert (finished.path / "compressed.onnx").read_bytes() == before
    assert all(entry.max_relative_difference < 1e-3 for entry in verify_run(finished.path))


def test_a_finished_run_is_left_alone(finished: RunFolder) -> None:
    said: list[str] = []
    before = finished.log_file.read_bytes()
    compress_run(finished.path, SETTINGS, say=said.append)
    assert "is finished" in said[0]
    assert finished.log_file.read_bytes() == before


class Interruption(BaseException):
    """As sudden as a signal."""


def interrupting(function: Callable[..., Any], after: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        after[0] -= 1
        if after[0] == 0:
            raise Interruption
        return function(*args, **kwargs)

    return call


def test_interrupted_at_ten_random_moments(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = [0]
    for place, name in (
        (run_module.CompressionRun, "log"),
        (RunFolder, "append"),
        (RunFolder, "write"),
        (run_module, "save_checkpoint"),
        (finish_module, "export_model"),
        (finish_module, "verify_export"),
    ):
        monkeypatch.setattr(place, name, interrupting(getattr(place, name), after))
    choose = random.Random(0)
    interrupted = 0
    while interrupted < 10:
        # 16 steps make an epoch: some attempts complete one or two, some none
        after[0] = choose.randint(1, 24)
        try:
            compress_run(tmp_path, SETTINGS, say=quiet)
            break
        except Interruption:
            interrupted += 1
    after[0] = 0
    compress_run(tmp_path, SETTINGS, say=quiet)
    whole, pieced = load_file(finished.checkpoint), load_file(tmp_path / "checkpoint.safetensors")
    assert whole.keys() == pieced.keys()
    assert all(torch.equal(whole[name], pieced[name]) for name in whole)
    assert (tmp_path / "compressed.onnx").read_bytes() == (finished.path / "compressed.onnx").read_bytes()
    steps = [row["step"] for row in RunFolder(tmp_path).read_log() if row["event"] == "epoch"]
    assert steps == [16, 32, 48]


def test_other_settings_are_refused(finished: RunFolder) -> None:
    config = {**CONFIG, "seed": 4}
    other = dataclasses.replace(SETTINGS, config=config, lr=0.1)
    with pytest.raises(RunError, match=r"lr was 0\.001 and is 0\.1; \$\.seed was 3 and is 4\..*--out"):
        compress_run(finished.path, other, say=quiet)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"thesis\.tex"):
        compress_run(tmp_path, SETTINGS, say=quiet)


def test_another_process_writes_here(tmp_path: Path) -> None:
    with RunFolder(tmp_path).writing(), pytest.raises(RunError, match="Another process writes"):
        compress_run(tmp_path, SETTINGS, say=quiet)


def test_a_run_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 0, "status": "training"}')
    for use in (lambda: compress_run(tmp_path, SETTINGS, say=quiet), lambda: verify_run(tmp_path)):
        with pytest.raises(RunError, match=r"another version .*\(format 0, this one reads 1\)"):
            use()


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}'])
def test_a_damaged_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"damaged|another version"):
        export_run(tmp_path)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        export_run(tmp_path)


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"No space left on device\. Free some space; the same command continues"):
        folder.write("report.json", {})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append({"event": "epoch", "step": 1})
    with folder.log_file.open("a") as stream:
        stream.write('{"event": "epo')
    assert folder.read_log() == [{"event": "epoch", "step": 1}]
    folder.cut_log(1)
    folder.append({"event": "epoch", "step": 2})
    assert [row["step"] for row in folder.read_log()] == [1, 2]


def test_a_training_of_ones_own(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, train="tests.run.digits:train", lr=0.01)
    folder = compress_run(tmp_path, settings, say=quiet)
    assert folder.status == "finished"
    assert "accuracy" not in folder.read_log()[-1]


def test_a_training_without_epochs(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, train="builtins:repr")
    with pytest.raises(CheckpointError, match=r"'builtins:repr' trained no epoch"):
        compress_run(tmp_path, settings, say=quiet)


def test_data_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder photos\."):
        compress_run(tmp_path, dataclasses.replace(SETTINGS, data="photos"), say=quiet)


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    settings = dataclasses.replace(SETTINGS, weights=str(tmp_path / "w.pth"))
    with pytest.raises(DataError, match=r"w\.pth cannot be loaded"):
        compress_run(tmp_path / "run", settings, say=quiet)
