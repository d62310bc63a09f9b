# SPDX-License-Identifier: Apache-2.0
"""A run of a few seconds: ``tests.run.tiny:network`` on ``tests.run.tiny:loaders``, and trainings of users."""

import os
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from djpq_nncf.run import CompressionRun, RunSettings

STEPS = 4
"""Of each of three epochs; the last two are of the frozen network."""
CONFIG = {
    "input_info": {"sample_size": [2, 1, 6, 6]},
    "target_device": "ANY",
    "compression": {
        "algorithm": "djpq",
        "target": {"bops_ratio": 0.03},
        "quantization": {"overflow_fix": "enable"},  # some CPUs that run the tests have no VNNI
        "schedule": {"epochs": 3, "freeze_epoch": 1},
    },
}
SETTINGS = RunSettings(CONFIG, "tests.run.tiny:network", "tests.run.tiny:loaders")


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def colour_network() -> nn.Module:
    return network(3)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 1, 6, 6, generator=generator), torch.arange(40) % 4
    train, val = TensorDataset(images[:32], labels[:32]), TensorDataset(images[32:], labels[32:])
    return DataLoader(train, 32 // STEPS, shuffle=True), DataLoader(val, 8)


def iterators() -> tuple[Any, Any]:
    train, val = loaders()
    return iter(train), val


def large_labels() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    batches = [(torch.rand(4, 1, 6, 6), torch.arange(4) + 4)]
    return batches, batches


def train(run: CompressionRun, *, end: int = 3) -> None:
    """A loop of a user, who logs less. With TINY_WAIT it waits behind a checkpoint, until a test ends it."""
    optimizer = torch.optim.SGD(run.ctrl.param_groups(lr=run.settings.lr), momentum=0.9)
    waits = False
    for epoch in run.epochs(optimizer):
        if epoch == end:
            break
        if waits:
            print("waiting", flush=True)  # noqa: T201
            time.sleep(600)
        waits = "TINY_WAIT" in os.environ
        run.model.train()
        for images, labels in run.batches():
            loss = F.cross_entropy(run.model(images), labels) + run.ctrl.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)


def break_off(run: CompressionRun) -> None:
    """Ends in its second epoch."""
    train(run, end=1)


def do_nothing(run: CompressionRun) -> None:
    pass
