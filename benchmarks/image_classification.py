# SPDX-License-Identifier: Apache-2.0
"""What the studies of accuracy share: data sets, networks, FP32 checkpoints and the training loop."""

import gzip
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 128


@dataclass(frozen=True)
class Images:
    """Normalised images [n, 1, size, size] and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def size(self) -> int:
        return self.train.shape[-1]


def fashion_mnist(folder: Path = Path("/usr/share/datasets/fashion-mnist")) -> Images:
    """60,000 and 10,000 images of 28x28 (Debian's package dataset-fashion-mnist)."""

    def images(name: str) -> Tensor:
        return (_read_idx(folder / name)[:, None].float() / 255 - 0.2860) / 0.3530

    def labels(name: str) -> Tensor:
        return _read_idx(folder / name).long()

    return Images(
        images("train-images-idx3-ubyte.gz"),
        labels("train-labels-idx1-ubyte.gz"),
        images("t10k-images-idx3-ubyte.gz"),
        labels("t10k-labels-idx1-ubyte.gz"),
    )


def digits() -> Images:
    """1,297 and 500 images of 8x8, enlarged to 16x16 (scikit-learn)."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor(data.images, dtype=torch.float32)[order, None] - 4.88) / 6.02
    images, labels = F.interpolate(images, scale_factor=2.0, mode="bilinear"), torch.tensor(data.target)[order]
    return Images(images[:-500], labels[:-500], images[-500:], labels[-500:])


def _read_idx(path: Path) -> Tensor:
    """An array in the IDX format of MNIST, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * len(shape) :]), dtype=torch.uint8).reshape(shape)


class Vgg7(nn.Module):
    """The paper's VGG7 layout at an eighth of its width, first convolution with stride 2: 1.7 M MACs at 28x28."""

    def __init__(self, size: int) -> None:
        super().__init__()
        widths = [(1, 16, 2), (16, 16, 1), None, (16, 32, 1), (32, 32, 1), None, (32, 64, 1), (64, 64, 1)]
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

    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        widths = [8, *(width for width in (8, 16, 32) for _ in range(3))]
        self.blocks = nn.Sequential(
            *(_Block(before, after, 1 if before == after else 2) for before, after in itertools.pairwise(widths))
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


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


DATA: dict[str, Callable[[], Images]] = {"fashion_mnist": fashion_mnist, "digits": digits}
NETWORKS: dict[str, Callable[[int], nn.Module]] = {"vgg7": Vgg7, "resnet20": ResNet20}
FP32_EPOCHS = {"fashion_mnist": 10, "digits": 40}


class Batches:
    """Shuffled batches of tensors in memory, another order in every pass."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int) -> None:
        self._images, self._labels = images, labels
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._images) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images), generator=self._generator)
        for start in range(0, len(self) * BATCH, BATCH):
            chosen = order[start : start + BATCH]
            yield self._images[chosen], self._labels[chosen]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = sum(
        int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    return 100 * hits / len(images)


def train(model: nn.Module, batches: Batches, epochs: int, ctrl: Any = None, lr: float = 1e-3) -> None:
    """Adam; the weights' learning rate follows a cosine to zero, those of gates and quantizers stay."""
    groups = ctrl.param_groups(lr=lr) if ctrl else [{"params": list(model.parameters()), "lr": lr}]
    optimizer = torch.optim.Adam(groups)
    step, steps = 0, epochs * len(batches)
    for _ in range(epochs):
        if ctrl:
            ctrl.scheduler.epoch_step()
        model.train()
        for images, labels in batches:
            if ctrl:
                ctrl.scheduler.step()
            loss = F.cross_entropy(model(images), labels)
            if ctrl:
                loss = loss + ctrl.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2


def pretrained(network: str, data: str, images: Images, folder: Path) -> nn.Module:
    """The FP32 network that every row of a study starts from, trained once and kept in ``folder``."""
    model = NETWORKS[network](images.size)
    checkpoint = folder / f"{network}_{data}.safetensors"
    if not checkpoint.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = NETWORKS[network](images.size)
        train(model, Batches(images.train, images.train_labels, 0), FP32_EPOCHS[data], lr=4e-3)
        partial = checkpoint.with_suffix(".partial")
        save_file(model.state_dict(), partial)
        partial.replace(checkpoint)
    model.load_state_dict(load_file(checkpoint))
    return model
