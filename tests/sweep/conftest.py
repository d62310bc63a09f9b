# SPDX-License-Identifier: Apache-2.0
"""Sweeps whose runs are made up."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from djpq_nncf.report import RunReport
from djpq_nncf.run import RunFolder, RunSettings
from djpq_nncf.sweep import _process
from tests.run.digits import CONFIG


@dataclass(frozen=True)
class Fakes:
    """What the made-up runs did, and a switch that holds them."""

    path: Path

    @property
    def begun(self) -> list[str]:
        return _lines(self.path / "begun")

    @property
    def ended(self) -> list[str]:
        return _lines(self.path / "ended")

    def hold(self) -> None:
        (self.path / "hold").touch()

    def go_on(self) -> None:
        (self.path / "hold").unlink()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Runs take no time; see ``fake_compress.py``."""
    path = tmp_path / "fake"
    finished = RunFolder(path / "finished")
    with finished.writing():
        finished.begin(RunSettings(CONFIG, "m:n", "m:d"))
        report = RunReport("x", "final", {}, {}, (), (), (), (), {}, {})
        finished.write(finished.report_data.name, report.to_dict())
        finished.set_status("finished")
    monkeypatch.setenv("FAKE", str(path))
    monkeypatch.setattr(_process, "COMPRESS", (sys.executable, "-S", str(Path(__file__).parent / "fake_compress.py")))
    return Fakes(path)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
