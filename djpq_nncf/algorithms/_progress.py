# SPDX-License-Identifier: Apache-2.0
"""Progress bars on long work; nothing is drawn where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def track(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; call what is yielded with the amount of work done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.update(task, advance=amount)
