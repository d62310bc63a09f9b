# SPDX-License-Identifier: Apache-2.0
"""What a training's progress says, in lines that fit the width at hand."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LEAST_BAR = 5
_MOST_BAR = 40
_FIXED = "\xa0"  # a space at which no line ends
_RATIOS = {"bops_ratio": "BOPs", "macs_ratio": "MACs", "size_ratio": "size"}


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    Attributes:
        epoch, epochs: from 1, and of all.
        step, steps: of the whole training; None if its length is not known.
        phase: of the compression.
        seconds: since the beginning.
        seconds_left: None if not known.
        latest: scalars by name.
    """

    epoch: int
    epochs: int
    step: int
    steps: int | None
    phase: str
    seconds: float
    seconds_left: float | None
    latest: Mapping[str, float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        where, time = ", ".join(self._where()), ", ".join(self._times())
        bar = min(_MOST_BAR, width - len(where) - len(time) - 2)
        if self.steps is not None and bar >= _LEAST_BAR:
            line = Table.grid(padding=(0, 1))
            line.add_row(where, ProgressBar(self.steps, self.step, width=bar), time)
            yield line
            yield Text(_fill([self.phase, *self._figures()], width))
        else:
            yield Text(_fill([*self._where(), *self._times(), self.phase, *self._figures()], width))

    def _where(self) -> Iterator[str]:
        yield f"epoch {self.epoch} of {self.epochs}"
        yield f"step {self.step}" + ("" if self.steps is None else f" of {self.steps}")

    def _times(self) -> Iterator[str]:
        yield _clock(self.seconds)
        if self.seconds_left is not None:
            yield f"{_clock(self.seconds_left)} left"

    def _figures(self) -> Iterator[str]:
        for name in ("loss", "task_loss", "compression_loss"):
            if name in self.latest:
                yield f"{name.replace('_', ' ')} {self.latest[name]:.3f}"
        for name, title in _RATIOS.items():
            asked = self.latest.get(f"{name}_asked")
            if name in self.latest and (asked is not None or name == "bops_ratio"):
                yield f"{title} {self.latest[name]:.4f}" + ("" if asked is None else f" ({asked:.4f} asked)")
        if "accuracy" in self.latest:
            yield f"accuracy {self.latest['accuracy']:.2%}"


def _fill(parts: list[str], width: int) -> str:
    """The parts in as many lines as they need; a line ends between two of them."""
    text = ", ".join(part.replace(" ", _FIXED) for part in parts)
    return textwrap.fill(text, width, break_on_hyphens=False).replace(_FIXED, " ")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
