# SPDX-License-Identifier: Apache-2.0
"""A finished run, made once, and runs that leave out what takes long."""

from collections.abc import Callable
from pathlib import Path

import pytest

from djpq_nncf.run import CompressionRun, RunFolder, compress_run
from djpq_nncf.run import _compress as compress_module
from tests.run.tiny import SETTINGS


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return compress_run(tmp_path_factory.mktemp("runs") / "whole", SETTINGS, say=quiet)


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs train and write the data of their report, and export nothing."""

    def finish(run: CompressionRun, *, say: Callable[[str], None]) -> None:
        run.folder.write(run.folder.report_data.name, run.ctrl.report_data(title="tiny").to_dict())

    monkeypatch.setattr(compress_module, "finish_run", finish)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"
