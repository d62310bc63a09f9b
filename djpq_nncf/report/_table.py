# SPDX-License-Identifier: Apache-2.0
"""Text tables."""

import io
from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 1000  # a table takes what its columns need; rich would shorten them to fit a smaller width


def render_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    text_columns: Collection[int] = (0,),
) -> str:
    """A table as plain text; ``text_columns`` are aligned left, the others right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position in text_columns else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_jupyter=False)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")
