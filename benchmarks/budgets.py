# SPDX-License-Identifier: Apache-2.0
"""What was asked for and what came out: 30 runs over networks, data sets and targets, all with the default settings.

python benchmarks/budgets.py
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from image_classification import RATES, pretrained, train
from image_data import Batches, load
from performance_page import markdown_table
from studies import Study

from djpq_nncf import create_compressed_model

STUDY = Study("budgets", ("network", "data", "settings"))
PAGE = Path(__file__).parents[1] / "docs" / "budgets.md"
EPOCHS = {"fashion_mnist": 2, "cifar10": 2, "digits": 20}
TARGETS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("vgg7", "fashion_mnist"): [
        {"target": {"bops_ratio": 1 / 16}},
        {"target": {"bops_ratio": 1 / 64}},
        {"target": {"bops_ratio": 1 / 250}},
        {"target": {"size_ratio": 0.08}},
    ],
    ("resnet20", "fashion_mnist"): [
        {"target": {"bops_ratio": 1 / 100}},
        {"target": {"bops_ratio": 1 / 400}},
        {"target": {"macs_ratio": 0.5}},
    ],
    ("vgg7", "cifar10"): [
        {"target": {"bops_ratio": 1 / 30}},
        {"target": {"bops_ratio": 1 / 150, "size_ratio": 0.1}},
        {"target": {"macs_ratio": 0.3}},
    ],
    ("resnet20", "cifar10"): [{"target": {"bops_ratio": 1 / 50}}, {"target": {"bops_ratio": 1 / 200}}],
    ("vgg7", "digits"): [
        {"target": {"bops_ratio": 1 / 20}},
        {"target": {"bops_ratio": 1 / 100}},
        {"target": {"bops_ratio": 1 / 300}},
        {"target": {"macs_ratio": 0.7}, "quantization": {"enabled": False}},
        {"target": {"size_ratio": 0.15}},
        {"target": {"bops_ratio": 1 / 100}, "quantization": {"power_of_two": True}},
        {"target": {"bops_ratio": 0.03}, "target_device": "CPU"},
        {"target": {"bops_ratio": 1 / 60}, "preset": "paper"},
    ],
    ("resnet20", "digits"): [
        {"target": {"bops_ratio": 1 / 40}},
        {"target": {"bops_ratio": 1 / 200}},
        {"target": {"bops_ratio": 1 / 60, "macs_ratio": 0.6}},
        {"target": {"bops_ratio": 0.02, "macs_ratio": 0.8, "size_ratio": 0.12}},
        {"target": {"bops_ratio": 0.02}, "target_device": "NPU"},
        {"target": {"bops_ratio": 1 / 100}, "pruning": {"enabled": False}},
    ],
    ("vit", "digits"): [
        {"target": {"bops_ratio": 1 / 30}},
        {"target": {"bops_ratio": 1 / 100}},
        {"target": {"macs_ratio": 0.5}},
        {"target": {"size_ratio": 0.1}},
    ],
}


def measure(network: str, data: str, settings: str) -> dict[str, Any]:
    """One fine-tuning with the defaults but for ``settings`` (JSON)."""
    djpq = json.loads(settings)
    device = djpq.pop("target_device", "ANY")
    torch.manual_seed(0)
    batches = Batches(load(data), 0)
    entry = {"algorithm": "djpq", "schedule": {"epochs": EPOCHS[data]}, **djpq}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ctrl, model = create_compressed_model(
            pretrained(network, data), {"target_device": device, "compression": entry}, init_data=batches
        )
        train(model, batches, EPOCHS[data], RATES[network], ctrl)
    ratios = ctrl.statistics().djpq.ratios
    return {"got": {key: ratios[key] for key in djpq["target"]}}


def page() -> str:
    """All finished runs as Markdown."""
    rows, missed = [], []
    for (network, data, settings), result in STUDY.finished().items():
        djpq = json.loads(str(settings))
        asked = djpq.pop("target")
        use = max(result["got"][key] / ratio for key, ratio in asked.items())
        rest = json.dumps(djpq)[1:-1].replace('"', "")
        rows.append(
            [
                f"{network}, {data}",
                ", ".join(f"{key} {ratio:.5f}" for key, ratio in asked.items()) + (f"; {rest}" if rest else ""),
                ", ".join(f"{ratio:.5f}" for ratio in result["got"].values()),
                f"{use:.2%}",
            ]
        )
        if not 0.98 <= use <= 1:
            missed.append(rows[-1])
    table = markdown_table(["run", "asked", "got", "used of the tightest"], rows, text_columns=2)
    return (
        "# Budgets\n\n"
        "Written by `python benchmarks/budgets.py`: what was asked for, and what the frozen network uses. Everything\n"
        f"else is at its default. {len(rows) - len(missed)} of {len(rows)} runs use 98 to 100 % of the tightest\n"
        f"budget. On {STUDY.machines()}.\n\n{table}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(EPOCHS))
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    chosen = parser.parse_args()
    keys = [
        (network, data, json.dumps(settings))
        for (network, data), asked in TARGETS.items()
        if data in chosen.data
        for settings in asked
    ]
    STUDY.run(keys, measure, chosen.share)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
