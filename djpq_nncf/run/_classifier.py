# SPDX-License-Identifier: Apache-2.0
"""The training of ``djpq-nncf compress`` for classifiers: Adam, cross entropy, a cosine learning rate."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.errors import DataError
from djpq_nncf.run._run import CompressionRun


def train_classifier(run: CompressionRun) -> None:
    """Train a network that maps a batch of inputs to logits [N, classes].

    The learning rate of the weights falls with a cosine; that of gates and quantizers stays, since they are done at
    the freeze.

    Raises:
        DataError: the data has other labels than the network has outputs.
    """
    groups = run.ctrl.param_groups(lr=run.settings.lr)
    optimizer = torch.optim.Adam(groups)
    if run.ctrl.scheduler.global_step == 0:
        run.log_original(accuracy=accuracy(run.original, run.val_batches, run.device))
    for _ in run.epochs(optimizer):
        run.model.train()
        for inputs, labels in run.batches():
            if run.total_steps is not None:
                share = (run.ctrl.scheduler.global_step - 1) / run.total_steps
                optimizer.param_groups[0]["lr"] = run.settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
            logits = run.model(inputs)
            _check(logits, labels)
            task_loss = F.cross_entropy(logits, labels)
            compression_loss = run.ctrl.loss()
            loss = task_loss + compression_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss, task_loss=task_loss, compression_loss=compression_loss)
        run.log_epoch(accuracy=accuracy(run.model, run.val_batches, run.device))


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Any], device: torch.device) -> float:
    """Share of samples whose class is the largest output, 0 to 1."""
    model.eval()
    right = total = 0
    for inputs, labels in batches:
        right += int((model(inputs.to(device)).argmax(1) == labels.to(device)).sum())
        total += len(labels)
    if not total:
        raise DataError("There are no batches to validate with. Give the data a part for validation.")
    return right / total


def _check(logits: Any, labels: Tensor) -> None:
    if not (isinstance(logits, Tensor) and logits.dim() == 2):
        raise DataError(
            "The network does not return logits [N, classes], which the built-in training needs. Name a training "
            "function of your own with --train package.module:function."
        )
    if labels.device.type == "cpu" and int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"The data has a label {int(labels.max())}, and the network {logits.shape[1]} outputs. Make the network "
            "with as many outputs as there are classes."
        )
