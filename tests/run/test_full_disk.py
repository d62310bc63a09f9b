# SPDX-License-Identifier: Apache-2.0
"""A disk that fills during ``compress``: one error, nothing lost, and the same command continues."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from djpq_nncf.algorithms import load_checkpoint
from djpq_nncf.cli import app
from djpq_nncf.run import RunFolder
from djpq_nncf.run import _compress as compress_module
from djpq_nncf.run import _run as run_module
from tests.disk import fill, small_disk
from tests.run.tiny import CONFIG, SETTINGS

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as path:
        yield path


def test_a_disk_that_fills(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = disk.parent / "config.json"
    config.write_text(json.dumps(CONFIG))
    folder = RunFolder(disk / "run")
    command = ["compress", str(config), "--model", SETTINGS.model, "--data", SETTINGS.data, "--out", str(folder.path)]

    def run_out_of_space(place: Any, name: str, message: str, epochs: int, *, at_once: bool) -> None:
        """Fill the disk when ``place.name`` was called, or before it is, and see what the command says."""
        function: Callable[..., Any] = getattr(place, name)

        def filling(*args: Any, **kwargs: Any) -> Any:
            if at_once:
                fill(disk)
            result = function(*args, **kwargs)
            if not at_once:
                with folder.log_file.open("a") as stream:  # its last page has no room either
                    stream.write("\n" * (-folder.log_file.stat().st_size % PAGE))
                fill(disk)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(place, name, filling)
            result = CliRunner().invoke(app, command)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert message in result.stderr
        assert "Free s" in result.stderr  # "some space", "space"; OpenVINO does not say what is wrong
        assert len(result.stderr.splitlines()) == 1
        assert load_checkpoint(folder.checkpoint).extra["epochs_done"] == epochs
        (disk / "ballast").unlink()

    saved = run_module.save_checkpoint
    run_out_of_space(run_module, "save_checkpoint", f"Cannot write {folder.log_file}", 1, at_once=False)
    assert run_module.save_checkpoint is saved
    run_out_of_space(run_module, "save_checkpoint", f"'{folder.checkpoint}' cannot be written", 1, at_once=True)
    run_out_of_space(compress_module, "finish_run", f"Cannot write {folder.path / 'compressed.xml'}", 3, at_once=True)
    assert folder.status == "trained"
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert folder.status == "finished"
    assert [row["step"] for row in folder.read_log() if row["event"] == "epoch"] == [4, 8, 12]
