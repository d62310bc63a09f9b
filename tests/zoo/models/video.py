# SPDX-License-Identifier: Apache-2.0
"""Video classifiers and optical flow of torchvision."""

from functools import partial
from typing import Any

from torch import nn
from torchvision.models.optical_flow.raft import CorrBlock
from torchvision.models.video import MViT, SwinTransformer3d, VideoResNet
from torchvision.models.video.mvit import MSBlockConfig
from torchvision.models.video.resnet import (
    BasicBlock,
    BasicStem,
    Conv2Plus1D,
    Conv3DNoTemporal,
    Conv3DSimple,
    R2Plus1dStem,
)

from tests.zoo.models.inputs import CLASSES, clip, example, image, torchvision_model
from tests.zoo.registry import Example, add


def _small_resnet(makers: list[Any], stem: type[nn.Module] = BasicStem) -> Example:
    model = VideoResNet(block=BasicBlock, conv_makers=makers, layers=[1, 1, 1, 1], stem=stem, num_classes=CLASSES)
    return example(model, clip(4, 16))


def _small_s3d() -> Example:
    built = torchvision_model("s3d", clip(8, 32), num_classes=CLASSES)
    # 7 x 7 positions remain of 224 pixels, none of 32.
    built.module.avgpool = nn.Identity()
    return built


def _small_mvit() -> Example:
    cube, point = [3, 3, 3], [1, 1, 1]
    blocks = [
        MSBlockConfig(1, 16, 24, cube, cube, point, [1, 2, 2]),
        MSBlockConfig(2, 24, 32, cube, cube, [1, 2, 2], point),
    ]
    model = MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=CLASSES,
    )
    return example(model, clip(4, 32))


def _small_swin() -> Example:
    model = SwinTransformer3d(
        patch_size=[2, 4, 4],
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=[2, 4, 4],
        num_classes=CLASSES,
    )
    return example(model, clip(8, 32))


def _flow(side: tuple[int, int], updates: int, **options: Any) -> Example:
    model = torchvision_model("raft_small", **options).module
    return Example(model, (image(*side), image(*side)), {"num_flow_updates": updates})


def _small_flow() -> Example:
    # The smallest image halves to two pixels at the last level of correlations.
    return _flow((64, 64), 2, corr_block=CorrBlock(num_levels=2, radius=2))


def _classifier(name: str, family: str, size: int, small: Any) -> None:
    add(name, family, full=lambda: torchvision_model(name, clip(16, size)), small=small)


_classifier("r3d_18", "Video CNN", 112, partial(_small_resnet, [Conv3DSimple] * 4))
_classifier("mc3_18", "Video CNN", 112, partial(_small_resnet, [Conv3DSimple, *[Conv3DNoTemporal] * 3]))
_classifier("r2plus1d_18", "Video CNN", 112, partial(_small_resnet, [Conv2Plus1D] * 4, R2Plus1dStem))
_classifier("s3d", "Video CNN", 224, _small_s3d)
_classifier("mvit_v2_s", "MViT", 224, _small_mvit)
_classifier("swin3d_t", "Video Swin", 224, _small_swin)
add("raft_small", "RAFT", full=partial(_flow, (368, 496), 12), small=_small_flow)
