# SPDX-License-Identifier: Apache-2.0
"""How the time of the dependency analysis grows with the network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models import VisionTransformer, get_model

from djpq_nncf.capture import capture
from djpq_nncf.channels import analyse_channels
from tests.zoo.removal import timed

REPETITIONS = 3


@dataclass(frozen=True)
class ScalingRow:
    """Analysis of one network, in CPU seconds of one thread: the least of several."""

    name: str
    nodes: int
    capture_seconds: float
    analysis_seconds: float


def _vit(layers: int) -> nn.Module:
    return VisionTransformer(
        image_size=64, patch_size=16, num_layers=layers, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=1000
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"resnet{depth}": lambda depth=depth: get_model(f"resnet{depth}") for depth in (18, 50, 152)},  # type: ignore[misc]
    **{f"ViT, {layers} layers of width 192": lambda layers=layers: _vit(layers) for layers in (12, 24, 48)},  # type: ignore[misc]
}


def measure_scaling() -> list[ScalingRow]:
    """A row for each network."""
    rows = []
    for name, build in NETWORKS.items():
        model, images = build().eval(), torch.randn(2, 3, 64, 64)
        captured, capture_seconds = timed(lambda model=model, images=images: capture(model, (images,)))  # type: ignore[misc]
        seconds = min(timed(lambda gm=captured: analyse_channels(gm))[1] for _ in range(REPETITIONS))  # type: ignore[misc]
        rows.append(ScalingRow(name, len(captured.graph.nodes), capture_seconds, seconds))
    return rows
