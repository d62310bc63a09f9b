# SPDX-License-Identifier: Apache-2.0
"""Shows and logs a training while it runs."""

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from djpq_nncf.algorithms import CompressionController, CompressionStage
from djpq_nncf.algorithms._progress import somebody_watches

LOG_EVERY = 50
"""Steps between two rows of the log."""
_REDRAW = 0.5  # seconds


class ScalarWriter(Protocol):
    """What of TensorBoard's ``SummaryWriter`` is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


class TrainingMonitor:
    """A progress line in terminal or notebook, rows for a log, and TensorBoard scalars, all with the same names.

    A row has ``event`` ("step" or "epoch"), ``epoch`` (from 1), ``step`` (of the whole training), ``seconds`` (of
    training), what :meth:`step` and :meth:`epoch` were told, and the controller's ``scalars()``.

    Args:
        ctrl: of the training.
        epochs: its length.
        steps_per_epoch: if known; else time left is not shown.
        log: gets the rows.
        writer: gets the scalars, such as ``torch.utils.tensorboard.SummaryWriter``.
        elapsed: seconds that earlier processes trained.
        show: whether to draw; None draws where somebody watches: in a terminal or notebook, not in CI and not in a
            worker process.

    Example:
        >>> with TrainingMonitor(ctrl, epochs=10, steps_per_epoch=len(loader)) as monitor:  # doctest: +SKIP
        ...     ...
        ...     monitor.step(loss=loss, task_loss=task_loss)
        ...     monitor.epoch(accuracy=accuracy)
    """

    def __init__(
        self,
        ctrl: CompressionController,
        *,
        epochs: int,
        steps_per_epoch: int | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        writer: ScalarWriter | None = None,
        elapsed: float = 0.0,
        show: bool | None = None,
    ) -> None:
        self._ctrl = ctrl
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._log = log
        self._writer = writer
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not (somebody_watches(console) if show is None else show),
            refresh_per_second=4,
        )
        total = None if steps_per_epoch is None else epochs * steps_per_epoch
        self._task = self._progress.add_task("", total=total, figures="")
        self._elapsed = elapsed
        self._begin = time.monotonic()
        self._drawn = 0.0
        self._latest: dict[str, float] = {}

    def __enter__(self) -> "TrainingMonitor":
        self._begin = time.monotonic()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, **scalars: float | Tensor) -> None:
        """After each training step: what to show and to log, such as ``loss``, ``task_loss``, ``compression_loss``."""
        step = self._ctrl.scheduler.global_step
        logged = step % LOG_EVERY == 1
        if logged:
            self._write("step", scalars)
        if not self._progress.disable:
            now = time.monotonic()
            if now - self._drawn >= _REDRAW or logged:
                self._drawn = now
                self._latest.update(_plain(scalars))
            self._draw(step)

    def epoch(self, **scalars: float | Tensor) -> None:
        """At the end of each epoch, such as with the ``accuracy``, 0 to 1."""
        self._write("epoch", scalars)
        self._draw(self._ctrl.scheduler.global_step)

    def say(self, line: str) -> None:
        """Print a line above the progress, if that is shown at all."""
        if not self._progress.disable:
            self._progress.console.print(line, markup=False, highlight=False)

    def _write(self, event: str, scalars: Mapping[str, float | Tensor]) -> None:
        values = {**_plain(scalars), **self._ctrl.scalars()}
        self._latest.update(values)
        scheduler = self._ctrl.scheduler
        if self._log is not None:
            row = {"event": event, "epoch": scheduler.epoch + 1, "step": scheduler.global_step}
            # JSON has no NaN
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._log({**row, "seconds": round(self._elapsed + time.monotonic() - self._begin, 3), **finite})
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, scheduler.global_step)

    def _draw(self, step: int) -> None:
        frozen = self._ctrl.compression_stage() is CompressionStage.FULLY_COMPRESSED
        phase = "fine-tuning" if frozen else "pruning and quantization"
        self._progress.update(
            self._task,
            completed=step,
            description=f"epoch {self._ctrl.scheduler.epoch + 1} of {self._epochs}, {phase}",
            figures=self._figures(),
        )

    def _figures(self) -> str:
        latest = self._latest
        parts = [f"{name} {latest[name]:.3f}" for name in ("loss", "compression_loss") if name in latest]
        for name, title in (("bops_ratio", "BOPs"), ("macs_ratio", "MACs"), ("size_ratio", "size")):
            if f"{name}_asked" in latest:
                parts.append(f"{title} {latest[name]:.4f} of {latest[f'{name}_asked']:.4f}")
        if "accuracy" in latest:
            parts.append(f"accuracy {latest['accuracy']:.2%}")
        return ", ".join(parts)


def _plain(scalars: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in scalars.items()}
