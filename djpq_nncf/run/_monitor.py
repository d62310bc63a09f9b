# SPDX-License-Identifier: Apache-2.0
"""Shows and logs a training while it runs."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from djpq_nncf.algorithms import CompressionController, CompressionStage
from djpq_nncf.algorithms._live import HIDDEN, LiveView, live_console, live_view
from djpq_nncf.algorithms._progress import somebody_watches
from djpq_nncf.run._monitor_text import Progress

LOG_EVERY = 50
"""Steps between two rows of the log."""
_LOOK_EVERY = 0.5  # seconds


class ScalarWriter(Protocol):
    """What of TensorBoard's ``SummaryWriter`` is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


class TrainingMonitor:
    """Progress in terminal or notebook, rows for a log, and TensorBoard scalars, all with the same names.

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
        self._show = show
        self._view: LiveView = HIDDEN
        self._open = ExitStack()
        self._elapsed = elapsed
        self._begin = time.monotonic()
        self._first_step: int | None = None
        self._looked = 0.0
        self._latest: dict[str, float] = {}

    def __enter__(self) -> "TrainingMonitor":
        self._begin = time.monotonic()
        console = live_console()
        shown = somebody_watches(console) if self._show is None else self._show
        self._view = self._open.enter_context(live_view(self._progress, console, shown=shown))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._view = HIDDEN

    def step(self, **scalars: float | Tensor) -> None:
        """After each training step: what to show and to log, such as ``loss``, ``task_loss``, ``compression_loss``."""
        step = self._ctrl.scheduler.global_step
        if self._first_step is None:
            self._first_step = step
        logged = step % LOG_EVERY == 1
        if logged:
            self._write("step", scalars)
        if self._view.shown:
            now = time.monotonic()
            if now - self._looked >= _LOOK_EVERY:  # which waits for a GPU
                self._looked = now
                self._latest.update(_plain(scalars))
            self._view.refresh()

    def epoch(self, **scalars: float | Tensor) -> None:
        """At the end of each epoch, such as with the ``accuracy``, 0 to 1."""
        self._write("epoch", scalars)
        self._view.refresh()

    def say(self, line: str) -> None:
        """Print a line above the progress, if that is shown at all."""
        self._view.say(line)

    def _write(self, event: str, scalars: Mapping[str, float | Tensor]) -> None:
        values = {**_plain(scalars), **self._ctrl.scalars()}
        self._latest.update(values)
        scheduler = self._ctrl.scheduler
        if self._log is not None:
            row = {"event": event, "epoch": scheduler.epoch + 1, "step": scheduler.global_step}
            # JSON has no NaN
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._log({**row, "seconds": round(self._seconds(), 3), **finite})
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, scheduler.global_step)

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._begin

    def _progress(self) -> Progress:
        scheduler = self._ctrl.scheduler
        frozen = self._ctrl.compression_stage() is CompressionStage.FULLY_COMPRESSED
        return Progress(
            epoch=max(1, scheduler.epoch + 1),
            epochs=self._epochs,
            step=scheduler.global_step,
            steps=None if self._steps_per_epoch is None else self._epochs * self._steps_per_epoch,
            phase="fine-tuning" if frozen else "pruning and quantization",
            seconds=self._seconds(),
            seconds_left=self._seconds_left(scheduler.global_step),
            latest=self._latest,
        )

    def _seconds_left(self, step: int) -> float | None:
        """At the pace of this process so far, validation included."""
        if self._steps_per_epoch is None or self._first_step is None:
            return None
        done = step - self._first_step + 1
        left = max(0, self._epochs * self._steps_per_epoch - step)
        return left * (time.monotonic() - self._begin) / done


def _plain(scalars: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in scalars.items()}
