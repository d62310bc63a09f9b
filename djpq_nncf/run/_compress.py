# SPDX-License-Identifier: Apache-2.0
"""A whole compression, from its settings to the report; interrupted, it continues."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch

from djpq_nncf.errors import RunError
from djpq_nncf.run._build import build_run, find_training
from djpq_nncf.run._finish import finish_run
from djpq_nncf.run._folder import RunFolder
from djpq_nncf.run._monitor import TrainingMonitor
from djpq_nncf.run._run import CompressionRun
from djpq_nncf.run._settings import RunSettings


def compress_run(
    path: str | os.PathLike[str],
    settings: RunSettings,
    *,
    device: torch.device | str | None = None,
    workers: int = 0,
    tensorboard: bool = False,
    show: bool | None = None,
    say: Callable[[str], None] = print,
) -> RunFolder:
    """Train as ``settings`` say in the folder ``path``, or continue there; export, verify and report.

    Args:
        path: folder of the run.
        settings: what decides the result.
        device: default is CUDA where there is a GPU.
        workers: processes that load images.
        tensorboard: write scalars for TensorBoard into the folder too (extra ``tensorboard``).
        show: whether to draw progress; None: where somebody watches.
        say: gets a line at each stage.

    Raises:
        RunError: the folder holds another run, or cannot be written to; or the training function left epochs out.
        DjpqError: config, model, data or checkpoint are not usable.
    """
    settings = settings.with_absolute_paths()
    folder = RunFolder(path)
    with folder.writing():
        folder.check(settings)
        if folder.exists and folder.status == "finished":
            say(f"The run in {folder.path} is finished.")
            return folder
        # everything that a user can mistype, before the folder becomes that of a run with these settings
        train = find_training(settings)
        writer = _tensorboard() if tensorboard else None
        run = build_run(folder, settings, device, workers)
        folder.begin(settings)
        if folder.status == "training":
            _train(run, train, writer, show, say)
            folder.set_status("trained")
        finish_run(run, say=say)
        folder.set_status("finished")
    return folder


def _train(
    run: CompressionRun,
    train: Callable[[CompressionRun], Any],
    writer: Callable[..., Any] | None,
    show: bool | None,
    say: Callable[[str], None],
) -> None:
    folder, settings, scheduler = run.folder, run.settings, run.ctrl.scheduler
    step = scheduler.global_step
    folder.cut_log(step)
    if run.epochs_done:
        say(f"Continuing {folder.path} after epoch {run.epochs_done} of {settings.epochs}.")
    with contextlib.ExitStack() as stack:
        if writer is not None:
            # what an interrupted process wrote of this step and later is done again
            scalars = stack.enter_context(contextlib.closing(writer(folder.path / "tensorboard", purge_step=step + 1)))
        run.monitor = TrainingMonitor(
            run.ctrl,
            epochs=settings.epochs,
            steps_per_epoch=None if run.total_steps is None else run.total_steps // settings.epochs,
            log=folder.append,
            writer=None if writer is None else scalars,
            elapsed=max((row.get("seconds", 0.0) for row in folder.read_log()), default=0.0),
            show=show,
        )
        folder.append({"event": "resume" if step else "start", "epoch": scheduler.epoch + 1, "step": step})
        stack.enter_context(run.monitor)
        train(run)
    if run.epochs_done < settings.epochs:
        raise RunError(
            f"'{settings.train}' trained {run.epochs_done or 'no'} of {settings.epochs} epochs: it has to iterate over "
            "run.epochs(optimizer), which saves checkpoints, to the end. Mend it; the same command continues."
        )


def _tensorboard() -> Callable[..., Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError("--tensorboard needs TensorBoard: pip install 'djpq-nncf[tensorboard]'.") from error
    writer: Callable[..., Any] = SummaryWriter
    return writer
