# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST from FP32 training to INT8 files, with the table of `djpq-nncf demo`.

python examples/fashion_mnist.py /usr/share/datasets/fashion-mnist
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf import DjpqError, NNCFConfig
from djpq_nncf.demo import Batches, ImageData, accuracy, compress_and_compare, train
from djpq_nncf.errors import DataError

CONFIG = Path(__file__).parent / "configs" / "fashion_mnist_djpq.json"
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MEAN, DEVIATION = 0.2860, 0.3530  # of the training images, in [0, 1]


class VGG7(nn.Module):
    """A small VGG of 1.7 M MACs; [N, 1, 28, 28] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for outputs, stride in ((16, 2), (16, 1), (32, 1), (32, 1), (64, 1), (64, 1)):
            if outputs == 2 * channels:
                layers.append(nn.MaxPool2d(2))
            layers += [
                nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(64 * 3 * 3, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.features(images).flatten(1))))


def load_fashion_mnist(folder: Path) -> ImageData:
    """The four idx files of Fashion-MNIST (Xiao et al. 2017), compressed with gzip or not.

    Raises:
        DataError: a file is missing or damaged.
    """
    images, labels, test_images, test_labels = (read_idx(find(folder, name)) for name in FILES)
    return ImageData(normalise(images), labels.long(), normalise(test_images), test_labels.long())


def find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(
        f"{folder} holds no {name}.gz. Pass the folder with the four files of Fashion-MNIST; on Debian and Ubuntu, "
        "`apt install dataset-fashion-mnist` puts them into /usr/share/datasets/fashion-mnist."
    )


def read_idx(path: Path) -> Tensor:
    """An array of bytes in the idx format: two zeros, the type, the number of dimensions, their sizes, the data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}). Install the data set again.") from error
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if not dimensions or len(content) - start != np.prod(shape):
        raise DataError(f"{path} is not an idx file of bytes, or is incomplete. Install the data set again.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def normalise(images: Tensor) -> Tensor:
    return (images.float()[:, None] / 255 - MEAN) / DEVIATION


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train, compress, export and measure a small network on Fashion-MNIST."
    )
    parser.add_argument("data", type=Path, help="folder with the four idx files, compressed with gzip or not")
    parser.add_argument("--config", type=Path, default=CONFIG, help="compression config (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_mnist"), help="folder for the files written")
    parser.add_argument("--epochs", type=int, default=10, help="of FP32 training; the config has those that follow")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of the weights while compressing")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    config = NNCFConfig.from_json(arguments.config)
    data = load_fashion_mnist(arguments.data)
    torch.manual_seed(arguments.seed)
    model = VGG7()
    batches = Batches(data.train_images, data.train_labels, arguments.batch_size, seed=arguments.seed)
    train(model, batches, epochs=arguments.epochs)
    print(f"FP32 accuracy in PyTorch: {accuracy(model, data.test_images, data.test_labels):.2%}")
    outcome = compress_and_compare(model, config, data, arguments.out, lr=arguments.lr, batch_size=arguments.batch_size)
    print(f"\n{outcome.layers}\n\n{outcome.comparison.to_str()}\n\nFiles in {arguments.out}")


def main() -> None:
    try:
        run(parse_arguments())
    except DjpqError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
