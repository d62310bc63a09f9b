# SPDX-License-Identifier: Apache-2.0
"""Data flows one way: a package imports only from those to its left."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import djpq_nncf

ROOT = Path(djpq_nncf.__file__).parent
ORDER = (
    "errors", "config", "nn", "capture", "channels", "cost", "nncf_bridge", "passes", "report", "export", "algorithms",
    "benchmark", "run", "demo", "integrations", "sweep", "cli", "__main__", "__init__",
)  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_has_its_place() -> None:
    parts = {part_of(path) for path in FILES}
    assert parts <= set(ORDER), "add the new package to ORDER"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_come_from_the_left(path: Path) -> None:
    part = part_of(path)
    allowed = ORDER[: ORDER.index(part) + 1]
    for name in imported(path):
        head, *rest = name.split(".")
        if head == "djpq_nncf" and rest[0] in ORDER:
            assert rest[0] in allowed, f"{part} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nncf_is_touched_in_one_file(path: Path) -> None:
    if path.name != "nncf_bridge.py":
        assert not [name for name in imported(path) if name.split(".")[0] in ("nncf", "torchao")]
