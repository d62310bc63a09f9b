# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from the first cell to the last, and each cell puts out what is stored with it."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
import nbformat  # noqa: E402

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def outputs(notebook: Any) -> list[list[str]]:
    """Of each cell the kinds of its outputs: figures, and where printed text is cut, depend on the machine."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [[kind for kind, _ in groupby(output.get("name", output.output_type) for output in cell)] for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_output_is_clean(path: Path) -> None:
    """Text that was printed, without progress, warnings and errors."""
    notebook = nbformat.read(path, as_version=4)
    assert {kind for cell in outputs(notebook) for kind in cell} == {"stdout"}
    assert outputs(notebook)[-1]
    assert "widgets" not in notebook.metadata


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_as_stored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # as `make notebooks` does: no progress
    notebook = nbformat.read(path, as_version=4)
    stored = outputs(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert outputs(notebook) == stored, f"{path.name} is stored with other output: run `make notebooks`"
