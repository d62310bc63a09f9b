# SPDX-License-Identifier: Apache-2.0
"""Every architecture that people use: captured, grouped, pruned, exported.

``make test`` takes a small member of each family. ``pytest tests/zoo --zoo=small`` takes the small form of all of
them, ``--zoo=full`` (``make zoo``) all as published, and keeps what it measures for ``docs/architectures.md``.
"""

from pathlib import Path

import pytest

from tests.zoo import models  # noqa: F401  (fills the zoo)
from tests.zoo.exporting import ExportRow, check_export
from tests.zoo.refused import NOT_CAPTURED, NOT_EXPORTED, RefusalRow, check_refusal
from tests.zoo.registry import ZOO, representatives
from tests.zoo.removal import RemovalRow, check_removal
from tests.zoo.rows import recorded

# What is lost in train mode is named by capture, and tested with it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


EXPORTED_BY_DEFAULT = ("mobilenet_v2", "vit_b_16")
"""Writing four files of a network and compiling them takes longer than everything else."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    size = metafunc.config.getoption("zoo")
    chosen = {
        "removed": list(ZOO) if size else representatives(),
        "exported": list(ZOO) if size else EXPORTED_BY_DEFAULT,
        "refused": list(NOT_CAPTURED) if size == "full" else (),
    }
    for name, names in chosen.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, names)


@pytest.fixture
def size(pytestconfig: pytest.Config) -> str | None:
    """What ``--zoo`` asks for."""
    return pytestconfig.getoption("zoo")


def test_removed_equals_gated(removed: str, size: str | None) -> None:
    model = ZOO[removed]
    row = RemovalRow(model.name, model.family)
    with recorded(row, keep=size == "full"):
        check_removal(model, size or "small", row)


def test_files_compute_the_same(exported: str, size: str | None, tmp_path: Path) -> None:
    model = ZOO[exported]
    row = ExportRow(model.name, model.family)
    with recorded(row, keep=size is not None):
        check_export(model, row, tmp_path, NOT_EXPORTED.get(exported, {}))


def test_library_refuses(refused: str) -> None:
    row = RefusalRow(refused)
    with recorded(row, keep=True):
        check_refusal(NOT_CAPTURED[refused], row)
