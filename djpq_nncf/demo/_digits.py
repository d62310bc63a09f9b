# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits that scikit-learn carries, and a residual network for them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.demo._data import ImageData

TEST_SAMPLES = 600


def load_digits_data() -> ImageData:
    """1797 scanned digits of 8x8 pixels (Alpaydin and Kaynak 1998), always split alike: 1197 to train, 600 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=TEST_SAMPLES, stratify=digits.target, random_state=0
    )
    images = (images - images[train].mean()) / images[train].std()
    return ImageData(images[train], labels[train], images[test], labels[test])


class DigitsResNet(nn.Module):
    """A residual network in small: BatchNorm, identity and projection shortcuts; [N, 1, 8, 8] to [N, 10]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            _Block(width, width),
            _Block(width, 2 * width, stride=2),
            _Block(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.stem(images))
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))
