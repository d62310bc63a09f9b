# SPDX-License-Identifier: Apache-2.0
"""Segmentation and detection: feature pyramids, several outputs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import BasicBlock
from torchvision.models.segmentation import LRASPP
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from tests.zoo.models.convolutional import small_mobilenet_v3
from tests.zoo.models.inputs import CLASSES, example, image, torchvision_model
from tests.zoo.registry import Example, add


class RawDetector(nn.Module):
    """A detector of torchvision without resizing of images, anchors and suppression, which are no networks."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(images).values()))


def _segmentation(name: str, *, small: Callable[[], Example] | None = None) -> None:
    add(
        name,
        "Segmentation",
        full=lambda: torchvision_model(name, image(520)),
        small=small or (lambda: torchvision_model(name, image(48), num_classes=CLASSES)),
    )


def _small_lraspp() -> Example:
    backbone = IntermediateLayerGetter(small_mobilenet_v3().features, {"1": "low", "4": "high"})
    return example(LRASPP(backbone, 16, 144, CLASSES, inter_channels=16), image(32))


def _raw(name: str, side: int, **options: Any) -> Example:
    detector = torchvision_model(name, **options).module
    assert isinstance(detector.backbone, nn.Module) and isinstance(detector.head, nn.Module)
    return example(RawDetector(detector.backbone, detector.head), image(side))


def _small_retinanet() -> Example:
    layers = {"layer1": "1", "layer2": "2"}
    body = BackboneWithFPN(ResNet(BasicBlock, [1, 1, 1, 1]), layers, [64, 128], 32, LastLevelP6P7(32, 32))
    return example(RawDetector(body, RetinaNetHead(32, num_anchors=2, num_classes=4)), image(64))


def _segformer(side: int, **options: Any) -> Example:
    return example(SegformerForSemanticSegmentation(SegformerConfig(**options)), pixel_values=image(side))


_segmentation("lraspp_mobilenet_v3_large", small=_small_lraspp)
_segmentation("deeplabv3_mobilenet_v3_large")
_segmentation("fcn_resnet50")
add(
    "retinanet_resnet50_fpn (raw)",
    "Detection",
    full=lambda: _raw("retinanet_resnet50_fpn", 512),
    small=_small_retinanet,
)
add(
    "ssdlite320_mobilenet_v3_large (raw)",
    "Detection",
    full=lambda: _raw("ssdlite320_mobilenet_v3_large", 320),
    small=lambda: _raw("ssdlite320_mobilenet_v3_large", 96, num_classes=4),
)
add(
    "segformer",
    "SegFormer",
    full=lambda: _segformer(512, num_labels=150),
    small=lambda: _segformer(
        32,
        num_labels=CLASSES,
        depths=[1, 1],
        num_encoder_blocks=2,
        sr_ratios=[2, 1],
        hidden_sizes=[16, 24],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        decoder_hidden_size=20,
    ),
)
