# SPDX-License-Identifier: Apache-2.0
"""The pages: messages they quote exist, configs are valid, links lead somewhere, and the site builds."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from djpq_nncf import NNCFConfig

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
OF_OTHERS = {"Expected to have finished reduction in the prior iteration"}


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def strings_of(path: Path) -> list[str]:
    """String literals of a module; of an f-string the parts between its values, with a blank for each value."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_messages_exist() -> None:
    quoted = re.findall(r"^### `(.*)`$", text_of("troubleshooting.md"), re.MULTILINE)
    assert len(quoted) > 20
    literals = [text for path in (REPOSITORY / "djpq_nncf").rglob("*.py") for text in strings_of(path)]
    missing = [part for part in quoted if part not in OF_OTHERS and not any(part in text for text in literals)]
    assert not missing


def test_the_new_config_is_valid_and_the_old_is_not(tmp_path: Path) -> None:
    old, new = re.findall(r"```json\n(.*?)```", text_of("migration.md"), re.DOTALL)
    (tmp_path / "new.json").write_text(new)
    assert NNCFConfig.from_json(tmp_path / "new.json").target_device == "NPU"
    (tmp_path / "old.json").write_text(old)
    with pytest.raises(ValueError, match=r'(?s)"djpq" prunes.*"djpq" quantizes'):
        NNCFConfig.from_json(tmp_path / "old.json")


def anchors(markdown: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_pages_outside(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = REPOSITORY / path if path else REPOSITORY / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    """Strict: a page that is missing from the menu, or a link or anchor that leads nowhere, is an error."""
    pytest.importorskip("mkdocs")
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path)
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]+)"', page)
    assert sources
    assert not [source for source in sources if "://" in source], "something is fetched"
