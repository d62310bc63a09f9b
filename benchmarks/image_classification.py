# SPDX-License-Identifier: Apache-2.0
"""What the studies of accuracy share: FP32 checkpoints and the training loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from image_data import RUNS, Batches, load
from image_networks import NETWORKS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from djpq_nncf.nn import OpenChannels

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EPOCHS = {"fashion_mnist": 6, "cifar10": 6, "digits": 60, "image_folder": 4}
RATES = {"vgg7": 3e-3, "vgg7_wide": 3e-3, "resnet20": 3e-3, "vit": 1e-3, "efficientnet_lite0": 1e-3}
FP32_EPOCHS = {"fashion_mnist": 10, "cifar10": 30, "digits": 40, "image_folder": 4}
FP32_RATES = {"vgg7": 4e-3, "vgg7_wide": 4e-3, "resnet20": 4e-3, "vit": 1e-3, "efficientnet_lite0": 1e-3}
LARGE = {"efficientnet_lite0"}
"""Networks whose checkpoint is not kept in the repository."""


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = sum(
        int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    return 100 * hits / len(images)


def train(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    lr: float,
    ctrl: Any = None,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    weight_decay: float = 0.0,
) -> None:
    """Adam (or another), learning rates that follow a cosine to zero, and the network compiled.

    Where statistics run on open channels alone, each channel that closes makes other shapes: compiling would not pay,
    as it would not in a short training.
    """
    groups = ctrl.param_groups(lr=lr, weight_decay=weight_decay) if ctrl else model.parameters()
    learner = optimizer(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(learner, epochs * len(batches))
    reshaped = any(isinstance(module, OpenChannels) for module in model.modules())
    pays = epochs * len(batches) >= 500 and not reshaped
    compiled = torch.compile(model) if pays else model
    for _ in range(epochs):
        if ctrl:
            ctrl.scheduler.epoch_step()
        model.train()
        for images, labels in batches:
            if ctrl:
                ctrl.scheduler.step()
            loss = F.cross_entropy(compiled(images), labels)
            if ctrl:
                loss = loss + ctrl.loss()
            learner.zero_grad()
            loss.backward()
            learner.step()
            schedule.step()


def pretrained(network: str, data: str) -> nn.Module:
    """The FP32 network that every row of a study starts from; trained once, and kept."""
    images = load(data)
    model = NETWORKS[network](*images.shape)
    folder = RUNS / "checkpoints" if network in LARGE else CHECKPOINTS
    checkpoint = folder / f"{network}_{data}.safetensors"
    if not checkpoint.exists():
        torch.manual_seed(0)
        model = NETWORKS[network](*images.shape)
        train(model, Batches(images, 0), FP32_EPOCHS[data], FP32_RATES[network])
        folder.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(".partial")
        save_file(model.state_dict(), partial)
        partial.replace(checkpoint)
    model.load_state_dict(load_file(checkpoint))
    return model
