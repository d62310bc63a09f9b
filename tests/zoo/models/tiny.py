# SPDX-License-Identifier: Apache-2.0
"""The four networks of MLPerf Tiny, after the reference implementations (https://github.com/mlcommons/tiny)."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.models.inputs import example, image
from tests.zoo.registry import add


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, *, groups: int = 1) -> nn.Module:
    padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, 3, stride)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.second(self.first(x))) + self.shortcut(x))


class ResNet8(nn.Module):
    """Image classification, CIFAR-10."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = _conv(3, width, 3)
        self.stacks = nn.Sequential(
            _Residual(width, width, 1), _Residual(width, 2 * width, 2), _Residual(2 * width, 4 * width, 2)
        )
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.stacks(self.stem(x)), 1).flatten(1))


class DSCNN(nn.Module):
    """Keyword spotting: a depthwise-separable network on 49 frames of 10 cepstral coefficients."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        blocks = [nn.Sequential(_conv(width, width, 3, groups=width), _conv(width, width, 1)) for _ in range(4)]
        self.features = nn.Sequential(_conv(1, width, (10, 4), 2), nn.Dropout(0.2), *blocks, nn.Dropout(0.4))
        self.classifier = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV1(nn.Module):
    """Visual wake words: a quarter of the width, 96 x 96 pixels."""

    def __init__(self, multiplier: float = 0.25, strides: tuple[int, ...] = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)):
        super().__init__()
        outputs = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
        width = int(32 * multiplier)
        blocks = [_conv(3, width, 3, 2)]
        for stride, full in zip(strides, outputs, strict=False):
            wider = int(full * multiplier)
            blocks.append(nn.Sequential(_conv(width, width, 3, stride, groups=width), _conv(width, wider, 1)))
            width = wider
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class AutoEncoder(nn.Sequential):
    """Anomaly detection in machine sounds (ToyADMOS): 640 - 4 x 128 - 8 - 4 x 128 - 640."""

    def __init__(self, size: int = 640, width: int = 128) -> None:
        widths = [size, *[width] * 4, 8, *[width] * 4]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, size))


add(
    "mlperf_tiny_resnet8",
    "MLPerf Tiny",
    full=lambda: example(ResNet8(), image(32)),
    small=lambda: example(ResNet8(8), image(16)),
)
add(
    "mlperf_tiny_ds_cnn",
    "MLPerf Tiny",
    full=lambda: example(DSCNN(), image(49, 10, channels=1)),
    small=lambda: example(DSCNN(16), image(49, 10, channels=1)),
)
add(
    "mlperf_tiny_mobilenet_v1_025",
    "MLPerf Tiny",
    full=lambda: example(MobileNetV1(), image(96)),
    small=lambda: example(MobileNetV1(0.125, (1, 2, 1, 2)), image(32)),
)
add(
    "mlperf_tiny_autoencoder",
    "MLPerf Tiny",
    full=lambda: example(AutoEncoder(), torch.randn(2, 640)),
    small=lambda: example(AutoEncoder(64, 16), torch.randn(2, 64)),
)
