# SPDX-License-Identifier: Apache-2.0
"""Text that is drawn again and again in one place: of a terminal, or of the output of a notebook's cell."""

import html
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live

_PER_SECOND = 4
_NOTEBOOK_WIDTH = 100
_shared: list[Console] = []


class LiveView(Protocol):
    """Where the text is drawn."""

    shown: bool

    def refresh(self) -> None:
        """What is drawn has changed."""

    def say(self, line: str) -> None:
        """Print a line that stays."""


def live_console() -> Console:
    """That of the views which are open, so that the terminal holds one under the other; else a new one, on stderr."""
    return _shared[-1] if _shared else Console(stderr=True)


@contextmanager
def live_view(
    renderable: Callable[[], RenderableType], console: Console, *, shown: bool, patience: float = 0.0
) -> Iterator[LiveView]:
    """Draw what ``renderable`` returns until the end of the block.

    A terminal forgets it then. A notebook keeps the last state, since it cannot take an output back; ``patience`` are
    the seconds before it gets one.
    """
    if not shown:
        yield HIDDEN
    elif console.is_jupyter:
        notebook = _Notebook(renderable, patience)
        try:
            yield notebook
        finally:
            notebook.close()
    else:
        with Live(
            get_renderable=renderable,
            console=console,
            transient=True,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file or a pipe has to arrive there
        ):
            _shared.append(console)
            try:
                yield _Terminal(console)
            finally:
                _shared.pop()


class _Hidden:
    shown = False

    def refresh(self) -> None:
        pass

    def say(self, line: str) -> None:
        pass


HIDDEN: LiveView = _Hidden()


class _Terminal:
    shown = True

    def __init__(self, console: Console) -> None:
        self._console = console

    def refresh(self) -> None:
        pass  # rich draws by the clock

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


class _Notebook:
    """Through a display handle, which every frontend has; rich would need ipywidgets."""

    shown = True

    def __init__(self, renderable: Callable[[], RenderableType], patience: float) -> None:
        self._renderable = renderable
        self._handle: Any = None
        self._next = time.monotonic() + patience

    def refresh(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1 / _PER_SECOND
            self._draw()

    def say(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")

    def close(self) -> None:
        if self._handle is not None:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        console = Console(file=io.StringIO(), width=_NOTEBOOK_WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(self._renderable())
        text = captured.get().rstrip()
        bundle = {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
