# SPDX-License-Identifier: Apache-2.0
"""The networks of the studies of accuracy."""

import itertools
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer


class Vgg7(nn.Module):
    """The paper's VGG7 layout at a part of its width, first convolution with stride 2.

    1.7 M MACs at 28x28 with an eighth of the width, 6.9 M with a quarter.
    """

    def __init__(self, channels: int, size: int, *, width: int = 16) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        convolutions = [(channels, a, 2), (a, a, 1), None, (a, b, 1), (b, b, 1), None, (b, c, 1), (c, c, 1)]
        layers: list[nn.Module] = []
        for entry in convolutions:
            if entry is None:
                layers.append(nn.MaxPool2d(2))
            else:
                before, after, stride = entry
                layers += [
                    nn.Conv2d(before, after, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(c * (-(-size // 2) // 4) ** 2, 8 * width)
        self.fc2 = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.features(x).flatten(1))))


class ResNet20(nn.Module):
    """ResNet-20 for small images at half of its width, first convolution with stride 2: 2.0 M MACs at 28x28."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        widths = [8, *(width for width in (8, 16, 32) for _ in range(3))]
        self.blocks = nn.Sequential(
            *(_Block(before, after, 1 if before == after else 2) for before, after in itertools.pairwise(widths))
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Vit(nn.Module):
    """A vision transformer of 4 layers, 4 heads and width 64 on 16 patches."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.transformer = VisionTransformer(
            image_size=size, patch_size=size // 4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
        )
        self.transformer.conv_proj = nn.Conv2d(channels, 64, size // 4, size // 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.shortcut = (
            nn.Identity()
            if before == after
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def efficientnet_lite0(channels: int, size: int) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, and a new layer for 10 classes."""
    from efficientnet_lite0 import load_network

    network = load_network()
    network.reset_classifier(10)
    return network


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "vgg7": Vgg7,
    "vgg7_wide": partial(Vgg7, width=32),
    "resnet20": ResNet20,
    "vit": Vit,
    "efficientnet_lite0": efficientnet_lite0,
}
