# SPDX-License-Identifier: Apache-2.0
"""A compression from its settings to a trained network, in epochs that resume."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from djpq_nncf.algorithms import CompressionController, create_compressed_model, load_checkpoint, save_checkpoint
from djpq_nncf.errors import CheckpointError
from djpq_nncf.run._data import Batches, load_batches
from djpq_nncf.run._folder import RunFolder, RunSettings
from djpq_nncf.run._monitor import ScalarWriter, TrainingMonitor
from djpq_nncf.run._objects import find_object, load_model, load_weights


@dataclass
class CompressionRun:
    """What a training function gets: ``package.module:function`` of ``--train`` is called with it.

    Attributes:
        ctrl: the controller.
        model: the model to train, on ``device``.
        original: the trained network, in eval mode.
        settings: of the run.
        folder: of the run.
        train_batches, val_batches: of the data.
        device: to train on.
        monitor: shows and logs.
        total_steps: of all epochs; None where ``train_batches`` has no length.

    Example:
        >>> def train(run):
        ...     optimizer = torch.optim.Adam(run.ctrl.param_groups(lr=run.settings.lr))
        ...     for epoch in run.epochs(optimizer):
        ...         run.model.train()
        ...         for images, labels in run.batches():
        ...             loss = F.cross_entropy(run.model(images), labels) + run.ctrl.loss()
        ...             ...
        ...             run.log(loss=loss)
        ...         run.log_epoch(accuracy=...)
    """

    ctrl: CompressionController
    model: GraphModule
    original: nn.Module
    settings: RunSettings
    folder: RunFolder
    train_batches: Batches
    val_batches: Batches
    device: torch.device
    monitor: TrainingMonitor
    total_steps: int | None
    _of_epoch: dict[str, float | Tensor]

    def epochs(self, optimizer: torch.optim.Optimizer) -> Iterator[int]:
        """Number of each epoch, from 0 or from where an earlier process was interrupted.

        Begins the epoch for the controller; when its body is done, logs and saves a checkpoint.

        Raises:
            CheckpointError: the checkpoint belongs to another network or optimizer, or cannot be written.
        """
        first = 0
        if self.folder.checkpoint.is_file():
            checkpoint = load_checkpoint(self.folder.checkpoint)
            checkpoint.restore(self.ctrl, optimizer)
            first = int(checkpoint.extra["epochs_done"])
        for epoch in range(first, self.settings.epochs):
            self.ctrl.scheduler.epoch_step()
            yield epoch
            self.monitor.epoch(**self._of_epoch)
            self._of_epoch.clear()
            save_checkpoint(self.folder.checkpoint, self.ctrl, optimizer, {"epochs_done": epoch + 1})

    def batches(self) -> Iterator[Any]:
        """Training batches on the device; tells the controller of each step."""
        for batch in self.train_batches:
            self.ctrl.scheduler.step()
            yield self.to_device(batch)

    def to_device(self, batch: Any) -> Any:
        return tree_map(lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch)

    def log(self, **scalars: float | Tensor) -> None:
        """After each step."""
        self.monitor.step(**scalars)

    def log_original(self, **scalars: float) -> None:
        """What the original reaches, such as its ``accuracy``; once, before the first epoch."""
        self.folder.append({"event": "original", "epoch": 0, "step": 0, **scalars})

    def log_epoch(self, **scalars: float | Tensor) -> None:
        """Before the end of each epoch."""
        self._of_epoch.update(scalars)


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
        RunError: the folder holds another run, or cannot be written to.
        DjpqError: config, model, data or checkpoint are not usable.
    """
    from djpq_nncf.run._finish import finish_run

    folder = RunFolder(path)
    with folder.writing():
        folder.begin(settings)
        if folder.status == "finished":
            say(f"The run in {folder.path} is finished.")
            return folder
        run = build_run(folder, settings, device, workers)
        if folder.status == "training":
            folder.cut_log(run.ctrl.scheduler.global_step)
            writer = _tensorboard(folder.path) if tensorboard else None
            run.monitor = _monitor(run, writer, show)
            _train(run, say)
            folder.set_status("trained")
        finish_run(run, say=say)
        folder.set_status("finished")
    return folder


def build_run(
    folder: RunFolder, settings: RunSettings, device: torch.device | str | None, workers: int
) -> CompressionRun:
    """The network under compression, as new or as the checkpoint has it."""
    torch.manual_seed(settings.seed)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train_batches, val_batches, classes = load_batches(settings, workers=workers)
    of_torchvision = settings.model.startswith("torchvision:")
    options = {"num_classes": classes} if classes is not None and of_torchvision else {}
    original = load_model(settings.model, **options)
    if settings.weights is not None:
        load_weights(original, Path(settings.weights))
    original.to(chosen).eval()
    state = load_checkpoint(folder.checkpoint).compression_state if folder.checkpoint.is_file() else None
    ctrl, model = create_compressed_model(original, settings.nncf_config, state, init_data=train_batches)
    length = len(train_batches) if hasattr(train_batches, "__len__") else None  # type: ignore[arg-type]
    run = CompressionRun(
        ctrl=ctrl,
        model=model,
        original=original,
        settings=settings,
        folder=folder,
        train_batches=train_batches,
        val_batches=val_batches,
        device=chosen,
        monitor=TrainingMonitor(ctrl, epochs=settings.epochs, show=False),
        total_steps=None if length is None else settings.epochs * length,
        _of_epoch={},
    )
    if state is not None:
        load_checkpoint(folder.checkpoint).restore(ctrl)
    return run


def _monitor(run: CompressionRun, writer: ScalarWriter | None, show: bool | None) -> TrainingMonitor:
    return TrainingMonitor(
        run.ctrl,
        epochs=run.settings.epochs,
        steps_per_epoch=None if run.total_steps is None else run.total_steps // run.settings.epochs,
        log=run.folder.append,
        writer=writer,
        elapsed=max((row.get("seconds", 0.0) for row in run.folder.read_log()), default=0.0),
        show=show,
    )


def _train(run: CompressionRun, say: Callable[[str], None]) -> None:
    from djpq_nncf.run._classifier import train_classifier

    step = run.ctrl.scheduler.global_step
    if run.folder.checkpoint.is_file():
        say(f"Continuing {run.folder.path} after epoch {run.ctrl.scheduler.epoch + 1} of {run.settings.epochs}.")
    run.folder.append({"event": "resume" if step else "start", "epoch": run.ctrl.scheduler.epoch + 1, "step": step})
    train = train_classifier if run.settings.train is None else find_object(run.settings.train)
    with run.monitor:
        train(run)
    if not run.folder.checkpoint.is_file():
        raise CheckpointError(
            f"'{run.settings.train}' trained no epoch: it has to iterate over run.epochs(optimizer), which saves "
            "checkpoints."
        )


def _tensorboard(path: Path) -> ScalarWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise CheckpointError("--tensorboard needs TensorBoard: pip install 'djpq-nncf[tensorboard]'.") from error
    writer: ScalarWriter = SummaryWriter(str(path / "tensorboard"))
    return writer
