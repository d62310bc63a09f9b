# SPDX-License-Identifier: Apache-2.0
"""A compression in epochs that resume: what a training function gets."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from djpq_nncf.algorithms import CompressionController, CompressionStage, load_checkpoint, save_checkpoint
from djpq_nncf.run._data import Batches
from djpq_nncf.run._folder import RunFolder
from djpq_nncf.run._means import Means
from djpq_nncf.run._monitor import TrainingMonitor
from djpq_nncf.run._settings import RunSettings


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
        epochs_done: complete epochs, with those of earlier processes.

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
    epochs_done: int = 0
    _of_steps: Means = field(default_factory=Means)
    _of_epoch: dict[str, float | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._frozen = self._is_frozen

    def epochs(self, optimizer: torch.optim.Optimizer) -> Iterator[int]:
        """Number of each epoch, from 0 or from where an earlier process was interrupted.

        Begins the epoch for the controller; when its body is done, logs and saves a checkpoint.

        Raises:
            CheckpointError: the checkpoint belongs to another network or optimizer, or cannot be written.
        """
        if self.folder.checkpoint.is_file():
            load_checkpoint(self.folder.checkpoint).restore(self.ctrl, optimizer)
        for epoch in range(self.epochs_done, self.settings.epochs):
            self.ctrl.scheduler.epoch_step()
            yield epoch
            self.monitor.epoch(**{**self._of_steps.take(), **self._of_epoch})
            self._of_epoch.clear()
            save_checkpoint(self.folder.checkpoint, self.ctrl, optimizer, {"epochs_done": epoch + 1})
            self.epochs_done = epoch + 1

    def batches(self) -> Iterator[Any]:
        """Training batches on the device; tells the controller of each step."""
        for batch in self.train_batches:
            self.ctrl.scheduler.step()
            yield self.to_device(batch)

    def to_device(self, batch: Any) -> Any:
        return tree_map(lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch)

    def log(self, **scalars: float | Tensor) -> None:
        """After each step; the row of the epoch has the means."""
        if self._is_frozen and not self._frozen:
            self._frozen = True
            scheduler = self.ctrl.scheduler
            self.folder.append({"event": "freeze", "epoch": scheduler.epoch + 1, "step": scheduler.global_step})
        self._of_steps.add(**scalars)
        self.monitor.step(**scalars)

    def log_original(self, **scalars: float) -> None:
        """What the original reaches, such as its ``accuracy``; once, before the first epoch."""
        self.folder.append({"event": "original", "epoch": 0, "step": 0, **scalars})

    def log_epoch(self, **scalars: float | Tensor) -> None:
        """Before the end of each epoch: what belongs to all of it."""
        self._of_epoch.update(scalars)

    @property
    def _is_frozen(self) -> bool:
        return self.ctrl.compression_stage() is CompressionStage.FULLY_COMPRESSED
