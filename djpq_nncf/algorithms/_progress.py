# SPDX-License-Identifier: Apache-2.0
"""Progress bars on long work; nothing is drawn where nobody watches."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from djpq_nncf.algorithms._live import live_console, live_view

_NO = ("", "0", "false", "no", "off")
_PATIENCE = 2.0  # seconds of work that leave no trace in a notebook


@contextmanager
def track(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; call what is yielded with the amount of work done."""
    console = live_console()
    progress = Progress(console=console, auto_refresh=False)  # never started, since the view draws it
    task = progress.add_task(description, total=total)
    with live_view(progress.get_renderable, console, shown=somebody_watches(console), patience=_PATIENCE) as view:

        def advance(amount: int) -> None:
            progress.update(task, advance=amount)
            view.refresh()

        yield advance


def somebody_watches(console: Console) -> bool:
    """In a terminal or a notebook, outside CI, and in the first process alone."""
    if os.environ.get("CI", "").lower() not in _NO or os.environ.get("RANK", "0") != "0":
        return False
    return multiprocessing.parent_process() is None and (console.is_terminal or console.is_jupyter)
