# SPDX-License-Identifier: Apache-2.0
"""Which choices matter: the defaults against the same run with one of them changed.

Each finished run is stored, so that an interrupted study continues where it was.

    python benchmarks/ablations.py --only "learned exponent"
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from image_classification import DATA, NETWORKS, Batches, accuracy, pretrained, train
from performance_page import machine, markdown_table

from djpq_nncf import create_compressed_model

EPOCHS = {"fashion_mnist": 6, "digits": 60}
CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learned exponent": {"quantization": {"weights": {"learn_exponent": True}}},
}
PAGE = Path(__file__).parents[1] / "docs" / "ablations.md"


def run(choice: str, network: str, data: str, fewer: int, seed: int, checkpoints: Path) -> dict[str, Any]:
    """One fine-tuning to a ``fewer``-th of the BOPs."""
    images = DATA[data]()
    model = pretrained(network, data, images, checkpoints)
    before = accuracy(model, images.test, images.test_labels)
    torch.manual_seed(seed)
    batches = Batches(images.train, images.train_labels, seed)
    entry = {
        "algorithm": "djpq",
        "schedule": {"epochs": EPOCHS[data]},
        "target": {"bops_ratio": 1 / fewer},
        **CHOICES[choice],
    }
    start = time.perf_counter()
    ctrl, compressed = create_compressed_model(model, {"compression": entry}, init_data=batches)
    train(compressed, batches, EPOCHS[data], ctrl)
    statistics = ctrl.statistics().djpq
    return {
        "lost": before - accuracy(compressed, images.test, images.test_labels),
        "bops_ratio": statistics.bops_ratio,
        "macs_ratio": statistics.macs_ratio,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="where finished runs are kept")
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES), help="besides the defaults")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--fewer", nargs="+", type=int, default=[100], help="how many times fewer BOPs")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    chosen = [choice for choice in CHOICES if choice in {"defaults", *arguments.only}]
    results: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for data in arguments.data:
            for network in arguments.networks:
                for fewer in arguments.fewer:
                    for choice in chosen:
                        name = f"{data}_{network}_{fewer}_{choice.replace(' ', '-')}_{seed}.json"
                        stored = arguments.runs / name
                        if not stored.exists():
                            result = run(choice, network, data, fewer, seed, arguments.runs)
                            stored.write_text(json.dumps(result))
                        results.setdefault((data, network, fewer, choice), []).append(json.loads(stored.read_text()))
                        print(name, results[data, network, fewer, choice][-1], flush=True)
    rows = [
        [
            *(f"{data}, {network}, 1/{fewer}", choice),
            f"{mean(lost):+.2f} ± {stdev(lost) if len(lost) > 1 else 0:.2f}",
            f"{mean(run['macs_ratio'] for run in runs):.2f}",
            f"{mean(run['seconds'] for run in runs):.0f}",
        ]
        for (data, network, fewer, choice), runs in results.items()
        for lost in [[run["lost"] for run in runs]]
    ]
    text = markdown_table(["run", "choice", "points lost", "MACs", "seconds"], rows, text_columns=2)
    print(text)
    PAGE.write_text(
        "# Ablations\n\n"
        f"Written by `python benchmarks/ablations.py`: mean and spread of {arguments.seeds} seeds, "
        "test accuracy against the FP32 network that all start from, on "
        f"{machine()}.\n\n{text}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
