# SPDX-License-Identifier: Apache-2.0
"""Image classifiers with attention, of torchvision and of Hugging Face."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from transformers import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.mobilevit.modeling_mobilevit import MobileViTTransformer

from tests.zoo.models.inputs import CLASSES, example, image, torchvision_model
from tests.zoo.registry import Example, add


def _small_vit() -> Example:
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )
    return example(model, image(32))


def _small_swin(**options: Any) -> Example:
    model = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=CLASSES,
        **options,
    )
    return example(model, image(32))


def _small_maxvit() -> Example:
    model = MaxVit(
        input_size=(32, 32),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 24],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
    )
    return example(model, image(32))


def _hugging_face(model: type[PreTrainedModel], config: Callable[[], PreTrainedConfig], side: int) -> Example:
    return example(model(config()), pixel_values=image(side))


def _add_hugging_face(
    name: str,
    family: str,
    model: type[PreTrainedModel],
    config: Callable[..., PreTrainedConfig],
    side: int,
    *,
    full: dict[str, Any],
    small: dict[str, Any],
) -> None:
    add(
        name,
        family,
        full=partial(_hugging_face, model, partial(config, num_labels=1000, **full), side),
        small=partial(_hugging_face, model, partial(config, num_labels=CLASSES, **small), 32),
    )


def _mobilevit(side: int, classes: int, **options: Any) -> Example:
    config = MobileViTConfig(image_size=side, **options)
    config.num_labels = classes
    return example(MobileViTForImageClassification(config), pixel_values=image(side))


def _small_mobilevit() -> Example:
    built = _mobilevit(
        64,
        CLASSES,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 12, 16, 20, 24, 28, 32],
        num_attention_heads=4,
    )
    for module in built.module.modules():
        if isinstance(module, MobileViTTransformer):  # two to four layers
            module.layer = module.layer[:1]
    return built


add("vit_b_16", "ViT", full=lambda: torchvision_model("vit_b_16", image(224)), small=_small_vit)
add("swin_t", "Swin", full=lambda: torchvision_model("swin_t", image(224)), small=_small_swin)
add(
    "swin_v2_t",
    "Swin",
    full=lambda: torchvision_model("swin_v2_t", image(256)),
    small=partial(_small_swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
)
add("maxvit_t", "MaxViT", full=lambda: torchvision_model("maxvit_t", image(224)), small=_small_maxvit)
_add_hugging_face(
    "hf_vit",
    "Hugging Face ViT",
    ViTForImageClassification,
    ViTConfig,
    224,
    full={"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    small={
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
)
_add_hugging_face(
    "hf_swin",
    "Hugging Face Swin",
    SwinForImageClassification,
    SwinConfig,
    224,
    full={},
    small={"image_size": 32, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4},
)
add(
    "hf_mobilevit",
    "Hugging Face MobileViT",
    full=lambda: _mobilevit(256, 1000),
    small=_small_mobilevit,
)
_add_hugging_face(
    "hf_convnextv2",
    "Hugging Face ConvNeXt V2",
    ConvNextV2ForImageClassification,
    ConvNextV2Config,
    224,
    full={},
    small={"image_size": 32, "hidden_sizes": [16, 24], "depths": [1, 2], "num_stages": 2},
)
