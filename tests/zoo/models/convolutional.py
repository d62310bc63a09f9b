# SPDX-License-Identifier: Apache-2.0
"""Convolutional image classifiers of torchvision."""

from functools import partial
from typing import Any

from torch import nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import VGG, make_layers

from tests.zoo.models.inputs import CLASSES, example, image, torchvision_model
from tests.zoo.registry import Example, add


def _classifier(name: str, family: str, *, size: int = 224, small: Any = 64, **options: Any) -> None:
    """``small``: a function, or the size of the images for the whole network with few classes."""
    if isinstance(small, int):
        side = small

        def small() -> Example:
            return torchvision_model(name, image(side), num_classes=CLASSES, **options)

    add(name, family, full=lambda: torchvision_model(name, image(size), **options), small=small)


def _small_alexnet() -> Example:
    built = torchvision_model("alexnet", image(64), num_classes=CLASSES)
    # Its two hidden layers have 4096 channels.
    built.module.avgpool = nn.AdaptiveAvgPool2d(2)
    built.module.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(1024, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES)
    )
    return built


def _small_googlenet() -> Example:
    built = torchvision_model("googlenet", image(32), num_classes=CLASSES, aux_logits=False, init_weights=False)
    # Blocks as wide as the ones in front of them.
    for name in ("inception4b", "inception4c", "inception5a"):
        setattr(built.module, name, nn.Identity())
    return built


def _small_vgg(*, batch_norm: bool) -> Example:
    model = VGG(make_layers([8, "M", 16, "M", 24, 24, "M"], batch_norm=batch_norm), num_classes=CLASSES)
    # Its two hidden layers have 4096 channels.
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(
        nn.Linear(24 * 4, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 24), nn.ReLU(True), nn.Linear(24, CLASSES)
    )
    return example(model, image(32))


def _small_mobilenet_v2() -> Example:
    settings = [[1, 8, 1, 1], [6, 12, 2, 2], [6, 16, 2, 2]]
    return example(MobileNetV2(CLASSES, width_mult=0.5, inverted_residual_setting=settings), image(32))


def small_mobilenet_v3() -> MobileNetV3:
    """Three blocks."""
    config = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [
        config(16, 3, 16, 16, use_se=True, activation="RE", stride=2),
        config(16, 3, 40, 24, use_se=False, activation="RE", stride=1),
        config(24, 5, 48, 24, use_se=True, activation="HS", stride=1),
    ]
    return MobileNetV3(blocks, last_channel=48, num_classes=CLASSES)


def _small_efficientnet() -> Example:
    blocks = [MBConvConfig(1, 3, 1, 32, 16, 1), MBConvConfig(4, 5, 2, 16, 24, 2)]
    return example(EfficientNet(blocks, dropout=0.2, num_classes=CLASSES), image(32))


def _small_efficientnet_v2() -> Example:
    blocks = [FusedMBConvConfig(1, 3, 1, 24, 24, 1), FusedMBConvConfig(4, 3, 2, 24, 16, 1)]
    blocks.append(MBConvConfig(4, 3, 2, 16, 24, 2))
    return example(EfficientNet(blocks, dropout=0.2, num_classes=CLASSES, last_channel=48), image(32))


def _small_regnet(se_ratio: float | None) -> Example:
    parameters = BlockParams([1, 2, 1], [16, 24, 32], [8] * 3, [1.0] * 3, [2] * 3, se_ratio)
    return example(RegNet(parameters, num_classes=CLASSES), image(32))


def _small_convnext() -> Example:
    blocks = [CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 2), CNBlockConfig(32, None, 1)]
    return example(ConvNeXt(blocks, num_classes=CLASSES), image(32))


def _small_resnet(block: Any = BasicBlock, **options: Any) -> Example:
    return example(ResNet(block, [1, 2, 1, 1], num_classes=CLASSES, **options), image(32))


def _small_densenet() -> Example:
    return example(DenseNet(8, (2, 3, 2), 16, num_classes=CLASSES), image(32))


def _small_squeezenet() -> Example:
    return example(SqueezeNet("1_1", CLASSES), image(48))


_classifier("vgg11_bn", "VGG", small=partial(_small_vgg, batch_norm=True))
_classifier("vgg11", "VGG", small=partial(_small_vgg, batch_norm=False))
_classifier("alexnet", "AlexNet", small=_small_alexnet)
_classifier("resnet18", "ResNet", small=_small_resnet)
_classifier("resnet50", "ResNet", small=partial(_small_resnet, Bottleneck))
_classifier("resnext50_32x4d", "ResNet", small=partial(_small_resnet, Bottleneck, groups=8, width_per_group=8))
_classifier("wide_resnet50_2", "ResNet", small=partial(_small_resnet, Bottleneck, width_per_group=128))
_classifier("densenet121", "DenseNet", small=_small_densenet)
_classifier("googlenet", "Inception", small=_small_googlenet, aux_logits=False, init_weights=False)
_classifier("inception_v3", "Inception", size=299, small=75, aux_logits=False, init_weights=False)
_classifier("squeezenet1_1", "SqueezeNet", small=_small_squeezenet)
_classifier("mobilenet_v2", "MobileNet", small=_small_mobilenet_v2)
_classifier("mobilenet_v3_small", "MobileNetV3", small=lambda: example(small_mobilenet_v3(), image(32)))
_classifier("mobilenet_v3_large", "MobileNetV3", small=32)
_classifier("mnasnet1_0", "MobileNet", small=32)
_classifier(
    "shufflenet_v2_x1_0",
    "ShuffleNet",
    small=lambda: example(ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 48], num_classes=CLASSES), image(32)),
)
_classifier("efficientnet_b0", "EfficientNet", small=_small_efficientnet)
_classifier("efficientnet_v2_s", "EfficientNet", small=_small_efficientnet_v2)
_classifier("regnet_y_400mf", "RegNet", small=partial(_small_regnet, 0.25))
_classifier("regnet_x_400mf", "RegNet", small=partial(_small_regnet, None))
_classifier("convnext_tiny", "ConvNeXt", small=_small_convnext)
