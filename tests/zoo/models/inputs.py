# SPDX-License-Identifier: Apache-2.0
"""Random inputs and what most models of torchvision have in common."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tests.zoo.registry import Example

CLASSES = 10
"""Outputs of small models."""


def image(height: int, width: int | None = None, *, channels: int = 3) -> Tensor:
    """[2, channels, height, width]."""
    return torch.randn(2, channels, height, width or height)


def clip(frames: int, size: int) -> Tensor:
    """[2, 3, frames, size, size]."""
    return torch.randn(2, 3, frames, size, size)


def tokens(length: int, vocabulary: int) -> Tensor:
    """[2, length] integers."""
    return torch.randint(0, vocabulary, (2, length))


def padding_mask(length: int) -> Tensor:
    """[2, length], the second sequence a third shorter than the first."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - length // 3 :] = 0
    return mask


def torchvision_model(name: str, *inputs: Tensor, **options: Any) -> Example:
    """A model by torchvision's name, with random weights."""
    options = {"weights": None, **options}
    if name.startswith(("deeplab", "lraspp", "fc", "ssd", "retinanet", "fasterrcnn", "keypointrcnn", "maskrcnn")):
        options["weights_backbone"] = None
    return Example(torchvision.models.get_model(name, **options), inputs)


def example(module: nn.Module, *inputs: Tensor, **kwargs: Any) -> Example:
    """A module with positional or keyword inputs."""
    return Example(module, inputs, kwargs)
