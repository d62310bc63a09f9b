# SPDX-License-Identifier: Apache-2.0
"""The least that can be compressed: ``tests.sweep.tiny:network`` on ``tests.sweep.tiny:loaders``."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CONFIG = {
    "seed": 3,
    "target_device": "ANY",
    "compression": {"algorithm": "djpq", "target": {"bops_ratio": 0.05}, "schedule": {"epochs": 2, "freeze_epoch": 1}},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    images = torch.rand(64, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, (images[:, 0] > 0.5).long())
    return DataLoader(data, 16, shuffle=True), DataLoader(data, 16)
