# SPDX-License-Identifier: Apache-2.0
"""Progress bars on long work; nothing is drawn where nobody watches."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def track(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; call what is yielded with the amount of work done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not somebody_watches(console)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.update(task, advance=amount)


def somebody_watches(console: Console) -> bool:
    """In a terminal or a notebook, outside CI, and in the first process alone."""
    if os.environ.get("CI") or os.environ.get("RANK", "0") != "0":
        return False
    return multiprocessing.parent_process() is None and (console.is_terminal or console.is_jupyter)
