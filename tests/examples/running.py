# SPDX-License-Identifier: Apache-2.0
"""Runs an example in this process, as if from the command line."""

import runpy
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str | Path) -> None:
    path = REPOSITORY / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")
