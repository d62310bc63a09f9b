# SPDX-License-Identifier: Apache-2.0
"""What the runs of the tests train: ``tests.run.digits:network`` on ``tests.run.digits:loaders``."""

from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from djpq_nncf.demo import DigitsResNet, load_digits_data

CONFIG = {
    "seed": 3,
    "target_device": "ANY",
    "compression": {"algorithm": "djpq", "target": {"bops_ratio": 0.05}, "schedule": {"epochs": 3, "freeze_epoch": 2}},
}


def network() -> DigitsResNet:
    torch.manual_seed(0)
    return DigitsResNet(8)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = load_digits_data()
    train = TensorDataset(data.train_images[:512], data.train_labels[:512])
    val = TensorDataset(data.test_images[:128], data.test_labels[:128])
    return DataLoader(train, 32, shuffle=True, drop_last=True), DataLoader(val, 64)
