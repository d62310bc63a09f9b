# SPDX-License-Identifier: Apache-2.0
"""A run that is interrupted, at any moment and by any signal, arrives where it would have without."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.export import ExportVerification, complete_files
from djpq_nncf.run import CompressionRun, RunFolder, compress_run
from djpq_nncf.run import _finish as finish_module
from tests.run.conftest import quiet
from tests.run.tiny import CONFIG, SETTINGS, STEPS

REPOSITORY = Path(__file__).parents[2]
Moment = tuple[str, str, str, int]
"""What is done, to what, the status of the run, and the epochs in its log."""
CHECK = ExportVerification("", "none", 8, 0.0, 0.0, None, 1.0, ())
DELICATE = ("checkpoint.safetensors", "compressed.onnx")


class Interruption(BaseException):
    """As sudden as a signal."""


class Watch:
    """Sees the steps, lines, files and checks of a run in a folder, and interrupts it at one of them."""

    def __init__(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.seen: list[Moment] = []
        self.stop: Moment | None = None
        for place, name, describe in (
            (CompressionRun, "log", lambda run, **scalars: ("step", run.ctrl.scheduler.global_step)),
            (RunFolder, "append", lambda folder, row: ("line", row["event"])),
            # between writing a file and moving it to its place
            (Path, "replace", lambda path, target: ("file", target.name)),
            (finish_module, "verify_export", lambda path, *more: ("check", path.name)),
        ):
            monkeypatch.setattr(place, name, self._watched(getattr(place, name), describe))

    def _watched(self, function: Callable[..., Any], describe: Callable[..., tuple[str, Any]]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            kind, what = describe(*args, **kwargs)
            status = self._folder.status if self._folder.exists else "none"
            rows = self._folder.read_log() if kind != "step" else []
            moment = (kind, str(what), status, sum(row["event"] == "epoch" for row in rows))
            self.seen.append(moment)
            if moment == self.stop:
                raise Interruption
            return function(*args, **kwargs)

        return call


def draw(seen: list[Moment], count: int) -> list[Moment]:
    """One of each kind and of the steps of each epoch, and any others, in the order in which they come."""
    choose = random.Random(0)
    kinds: dict[tuple[str, str | int], list[Moment]] = {}
    for moment in seen:
        kind, what, *_ = moment
        part = (int(what) - 1) // STEPS if kind == "step" else what if what in DELICATE else ""
        kinds.setdefault((kind, part), []).append(moment)
    chosen = {choose.choice(own) for own in kinds.values()}
    others = [moment for moment in seen if moment not in chosen]
    return sorted({*chosen, *choose.sample(others, count - len(chosen))}, key=seen.index)


def log_of(folder: RunFolder) -> list[dict[str, Any]]:
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in folder.read_log()]
    return [row for row in rows if row["event"] != "resume"]


def assert_same(one: RunFolder, other: RunFolder) -> None:
    first, second = load_file(one.checkpoint), load_file(other.checkpoint)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log_of(one) == log_of(other)


def write_quickly(path: Path, content: str) -> None:
    """Stands for an export, which takes seconds: files appear in the same way."""
    with complete_files(path, (".bin",) if path.suffix == ".xml" else ()) as temporary:
        for file in (temporary, temporary.with_suffix(".bin")):
            file.write_text(content)


def test_interrupted_at_ten_random_moments(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieced = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "pieced")
    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "export_model", lambda network, path: write_quickly(path, "original"))
        patch.setattr(DJPQController, "export_model", lambda ctrl, path, **options: write_quickly(path, "compressed"))
        patch.setattr(finish_module, "verify_export", lambda path, *more: CHECK)
        with pytest.MonkeyPatch.context() as watching:
            watch = Watch(whole, watching)
            compress_run(whole.path, SETTINGS, say=quiet)
        assert len(watch.seen) == len(set(watch.seen)) > 30
        moments = draw(watch.seen, 10)

        watch = Watch(pieced, patch)
        for moment in moments:
            watch.stop = moment
            with pytest.raises(Interruption):
                compress_run(pieced.path, SETTINGS, say=quiet)
            assert watch.seen[-1] == moment
    compress_run(pieced.path, SETTINGS, say=quiet)

    assert len(moments) == 10
    assert {(int(what) - 1) // STEPS for kind, what, *_ in moments if kind == "step"} == {0, 1, 2}
    assert set(DELICATE) <= {what for kind, what, *_ in moments if kind == "file"}
    assert {"line", "check"} <= {kind for kind, *_ in moments}
    assert_same(finished, whole)
    assert_same(finished, pieced)
    for name in ("compressed.onnx", "compressed.bin", "fp32.onnx", "report.json"):
        assert (pieced.path / name).read_bytes() == (finished.path / name).read_bytes()


@pytest.mark.slow
def test_killed_and_interrupted_by_a_signal(tmp_path: Path, without_files: None) -> None:
    settings = replace(SETTINGS, train="tests.run.tiny:train")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "djpq_nncf", "compress", str(tmp_path / "config.json"), "--out", str(folder.path)]
    options = ["--model", settings.model, "--data", settings.data, "--train", str(settings.train)]
    said = []
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        with subprocess.Popen(
            [*command, *options],
            cwd=REPOSITORY,
            env={**os.environ, "TINY_WAIT": "yes", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
        ) as process:
            while process.stdout and (line := process.stdout.readline()) not in ("waiting\n", ""):
                said.append(line)
            process.send_signal(sent)
            _, error = process.communicate()
        assert process.returncode == code, error
        assert "Traceback" not in error
    assert said == [f"Continuing {folder.path} after epoch 1 of 3.\n"]
    assert "Interrupted. The same command continues" in error

    assert compress_run(folder.path, settings, say=quiet).status == "finished"
    assert_same(compress_run(tmp_path / "whole", settings, say=quiet), folder)
