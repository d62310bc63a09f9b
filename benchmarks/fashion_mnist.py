# SPDX-License-Identifier: Apache-2.0
"""Accuracy against BOPs on Fashion-MNIST: uniform, quantization alone, two-stage, joint, joint with power-of-two bits.

Every row starts from the same FP32 checkpoint and has the same number of epochs of fine-tuning, the same optimizer and
the same learning rates. Each finished row is stored, so that an interrupted study continues where it was.

    python benchmarks/fashion_mnist.py --data /usr/share/datasets/fashion-mnist
"""

import argparse
import gzip
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import djpq_nncf
from djpq_nncf import NNCFConfig, create_compressed_model

BATCH = 128
TARGETS = (50, 100, 200)
FIRST_STAGE_MACS = 0.75  # the two-stage scheme of the paper prunes to 1/1.33 of the MACs first


class Vgg7(nn.Module):
    """The paper's VGG7 layout at an eighth of its width, first convolution with stride 2: 1.7 M MACs, 352 gates."""

    def __init__(self) -> None:
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
        self.fc1 = nn.Linear(64 * 9, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.features(x).flatten(1))))


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


def read_idx(path: Path) -> Tensor:
    """An array in the IDX format of MNIST, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * len(shape) :]), dtype=torch.uint8).reshape(shape)


def load_data(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised training images, labels, test images, labels."""

    def images(name: str) -> Tensor:
        return (read_idx(folder / name)[:, None].float() / 255 - 0.2860) / 0.3530

    def labels(name: str) -> Tensor:
        return read_idx(folder / name).long()

    return (
        images("train-images-idx3-ubyte.gz"),
        labels("train-labels-idx1-ubyte.gz"),
        images("t10k-images-idx3-ubyte.gz"),
        labels("t10k-labels-idx1-ubyte.gz"),
    )


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


def configuration(epochs: int, **algorithm: Any) -> NNCFConfig:
    """DJPQ with a schedule of ``epochs``."""
    entry = {"algorithm": "djpq", "schedule": {"epochs": epochs}, **algorithm}
    return NNCFConfig.from_dict({"compression": entry})


def compress(model: nn.Module, config: NNCFConfig, batches: Batches, epochs: int) -> Any:
    """Fine-tune under a configuration."""
    ctrl, compressed = create_compressed_model(model, config, init_data=batches)
    train(compressed, batches, epochs, ctrl)
    return ctrl


def fixed(bits: int) -> dict[str, Any]:
    """Uniform bit-widths, the input at 8 bits."""
    return {"pruning": {"enabled": False}, "quantization": {"weights": {"bits": bits}, "activations": {"bits": bits}}}


def run_row(name: str, target: float | None, model: nn.Module, batches: Batches, epochs: int) -> tuple[nn.Module, Any]:
    """The fine-tuned network of a row, and its statistics (None for FP32)."""
    if name == "FP32, fine-tuned":
        train(model, batches, epochs)
        return model, None
    if name == "two-stage":
        first = epochs // 2
        pruned = compress(
            model,
            configuration(first, quantization={"enabled": False}, target={"bops_ratio": FIRST_STAGE_MACS}),
            batches,
            first,
        )
        before = pruned.statistics().djpq
        assert target is not None
        second = compress(
            pruned.strip().train(),
            configuration(
                epochs - first, pruning={"enabled": False}, target={"bops_ratio": target / before.macs_ratio}
            ),
            batches,
            epochs - first,
        )
        after = second.statistics().djpq
        return second.model, (after.bops_ratio * before.macs_ratio, before.macs_ratio)
    options: dict[str, Any] = {"target": {"bops_ratio": target}} if target else {}
    options |= {
        "W8A8": fixed(8),
        "W4A4": fixed(4),
        "DQ": {"pruning": {"enabled": False}},
        "DJPQ": {},
        "DJPQ, power of two": {"quantization": {"power_of_two": True}},
    }[name]
    ctrl = compress(model, configuration(epochs, **options), batches, epochs)
    statistics = ctrl.statistics().djpq
    return ctrl.model, (statistics.bops_ratio, statistics.macs_ratio)


def table(results: list[dict[str, Any]], epochs: int, seed: int) -> str:
    """The study as Markdown."""
    version, threads = torch.__version__.split("+")[0], f"{torch.get_num_threads()} thread(s)"
    base = next(row["accuracy"] for row in results if row["name"] == "FP32")
    lines = [
        "# Fashion-MNIST: accuracy against bit operations",
        "",
        "Written by `python benchmarks/fashion_mnist.py`. A VGG7 of 1.7 M MACs and 352 gates; every row starts from",
        f"the same FP32 checkpoint and is fine-tuned for {epochs} epochs with the same optimizer. One seed ({seed}):",
        "a few tenths of a point mean little. The weight of the gates in the joint loss was chosen on this network by",
        "test accuracy, the other schemes were not tuned. `asked` and `got` are BOPs, original / compressed.",
        f"torch {version}, djpq_nncf {djpq_nncf.__version__}, {platform.machine()}, {threads}.",
        "",
        "| scheme | asked | got | MACs | accuracy % | lost |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in results:
        asked = f"{row['asked']}x" if row["asked"] else ""
        got = f"{1 / row['bops_ratio']:.1f}x" if row["bops_ratio"] else "1x"
        macs = f"{1 / row['macs_ratio']:.2f}x" if row["macs_ratio"] else "1x"
        lines.append(
            f"| {row['name']} | {asked} | {got} | {macs} | {row['accuracy']:.2f} | {base - row['accuracy']:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the *-ubyte.gz files")
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion_mnist"), help="where finished rows are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results_fashion_mnist.md"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--fp32-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="SCHEME", help="run these rows first, and write no table")
    arguments = parser.parse_args()
    runs = arguments.runs
    runs.mkdir(parents=True, exist_ok=True)
    train_images, train_labels, test_images, test_labels = load_data(arguments.data)

    checkpoint = runs / "fp32.safetensors"
    if not checkpoint.exists():
        torch.manual_seed(0)
        model: nn.Module = Vgg7()
        train(model, Batches(train_images, train_labels, 0), arguments.fp32_epochs, lr=4e-3)
        save_file(model.state_dict(), checkpoint)

    rows: list[tuple[str, int | None]] = [("FP32", None), ("FP32, fine-tuned", None), ("W8A8", None), ("W4A4", None)]
    rows += [(name, t) for t in TARGETS for name in ("DQ", "two-stage", "DJPQ", "DJPQ, power of two")]
    if arguments.only:
        rows = [row for row in rows if row[0] in arguments.only]
    results = []
    for name, asked in rows:
        stored = runs / f"{name.replace(', ', '_').replace(' ', '-')}_{asked}_{arguments.epochs}_{arguments.seed}.json"
        if not stored.exists():
            torch.manual_seed(arguments.seed)
            model = Vgg7()
            model.load_state_dict(load_file(checkpoint))
            begun, costs = time.perf_counter(), None
            if name != "FP32":
                batches = Batches(train_images, train_labels, arguments.seed)
                model, costs = run_row(name, 1 / asked if asked else None, model, batches, arguments.epochs)
            result = {
                "name": name,
                "asked": asked,
                "accuracy": accuracy(model, test_images, test_labels),
                "bops_ratio": costs and costs[0],
                "macs_ratio": costs and costs[1],
                "seconds": time.perf_counter() - begun,
            }
            stored.write_text(json.dumps(result))
        results.append(json.loads(stored.read_text()))
        print(results[-1], flush=True)
    if arguments.only:
        return
    text = table(results, arguments.epochs, arguments.seed)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
