# SPDX-License-Identifier: Apache-2.0
"""docs/performance.md, whose sections are each written by one benchmark."""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_INTRODUCTION = """\
# Performance

Every section is written by the command it names. Ratios are taken in one process, the candidates in turn.
"""


def machine() -> str:
    """What a figure was taken on."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        model = found[1] if found else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "nncf", "openvino", "onnxruntime"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    alignment = ["--"] * text_columns + ["--:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, alignment, *rows)) + "\n"


def write_section(title: str, text: str) -> None:
    """Replace the section with this title, or append it."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else _INTRODUCTION
    introduction, *sections = re.split(r"(?m)^## ", page)
    kept = {section.partition("\n")[0]: section for section in sections}
    kept[title] = f"{title}\n\n{text}"
    parts = [introduction, *(f"## {section}" for section in kept.values())]
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
