# SPDX-License-Identifier: Apache-2.0
"""Training loops: an ordinary one, and the same with the few lines that compression adds."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from djpq_nncf.algorithms import CompressionController
from djpq_nncf.algorithms._progress import track
from djpq_nncf.demo._data import Batches
from djpq_nncf.run import TrainingMonitor
from djpq_nncf.run._means import Means


def train(model: nn.Module, batches: Batches, *, epochs: int, lr: float = 2e-3) -> None:
    """Train a classifier in floating point: Adam, cosine learning rate."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(epochs * len(batches)))
    model.train()
    for epoch in range(epochs):
        with track(f"FP32 training, epoch {epoch + 1} of {epochs}", len(batches)) as advance:
            for images, labels in batches:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)
    model.eval()


def fine_tune(
    ctrl: CompressionController,
    model: GraphModule,
    batches: Batches,
    *,
    epochs: int,
    lr: float = 1e-3,
    evaluate: Callable[[], float] | None = None,
) -> list[dict[str, Any]]:
    """Train a model that ``create_compressed_model`` made: search, freeze, and fine-tune what was found.

    The learning rate of the weights falls with a cosine; that of gates and quantizers stays, since they are done at
    the freeze.

    Args:
        ctrl: its controller.
        model: to train.
        batches: of training data.
        epochs: length of the training.
        lr: learning rate of the weights.
        evaluate: called at the end of each epoch, for the accuracy in the log.

    Returns:
        Rows of the log, for ``ctrl.report``.
    """
    groups = ctrl.param_groups(lr=lr)
    optimizer = torch.optim.Adam(groups)
    cosine = _cosine(epochs * len(batches))
    factors = [cosine if group["name"] == "weights" else _constant for group in groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    history: list[dict[str, Any]] = []
    means = Means()
    with TrainingMonitor(ctrl, epochs=epochs, steps_per_epoch=len(batches), log=history.append) as monitor:
        for _ in range(epochs):
            ctrl.scheduler.epoch_step()
            model.train()
            for images, labels in batches:
                ctrl.scheduler.step()
                task_loss = F.cross_entropy(model(images), labels)
                compression_loss = ctrl.loss()
                loss = task_loss + compression_loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses = {"loss": loss, "task_loss": task_loss, "compression_loss": compression_loss}
                means.add(**losses)
                monitor.step(**losses)
            model.eval()
            monitor.epoch(**means.take(), **({} if evaluate is None else {"accuracy": evaluate()}))
    return history


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """Share of samples whose class is the largest output, 0 to 1. A module should be in eval mode."""
    right = sum(
        int((model(chunk).argmax(1) == truth).sum())
        for chunk, truth in zip(images.split(256), labels.split(256), strict=True)
    )
    return right / len(labels)


def _cosine(steps: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _constant(step: int) -> float:
    return 1.0
