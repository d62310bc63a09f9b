# SPDX-License-Identifier: Apache-2.0
"""Compression from 512 images without labels: what the search and the reconstruction of layers are worth.

python benchmarks/post_training.py
"""

import argparse
import itertools
import warnings
from pathlib import Path
from typing import Any

from image_classification import accuracy, pretrained
from image_data import load
from performance_page import markdown_table
from studies import Study

from djpq_nncf import compress_post_training

STUDY = Study("post_training", ("network", "data", "asked", "search_steps", "reconstruction_steps"))
PAGE = Path(__file__).parents[1] / "docs" / "post_training.md"
SAMPLES, BATCH = 512, 64
STEPS = ((0, 0), (0, 300), (300, 0), (300, 300))
ASKED: dict[str, dict[str, Any]] = {
    **{
        f"{bits} bits": {
            "pruning": {"enabled": False},
            "quantization": {"weights": {"bits": bits}, "activations": {"bits": bits}},
        }
        for bits in (8, 4, 3, 2)
    },
    **{f"1/{fewer} of the BOPs": {"target": {"bops_ratio": 1 / fewer}} for fewer in (32, 50, 100)},
}


def measure(network: str, data: str, asked: str, search_steps: int, reconstruction_steps: int) -> dict[str, Any]:
    """Test accuracy of one compression."""
    images = load(data)
    samples = [images.train[start : start + BATCH] for start in range(0, SAMPLES, BATCH)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ctrl, _ = compress_post_training(
            pretrained(network, data),
            {"compression": {"algorithm": "djpq", **ASKED[asked]}},
            samples,
            search_steps=search_steps,
            reconstruction_steps=reconstruction_steps,
        )
    statistics = ctrl.statistics().djpq
    return {
        "accuracy": accuracy(ctrl.strip(), images.test, images.test_labels),
        "bops_ratio": statistics.bops_ratio,
        "macs_ratio": statistics.macs_ratio,
    }


def page() -> str:
    """All finished runs as Markdown."""
    finished = STUDY.finished()
    sections = []
    for network, data in dict.fromkeys(key[:2] for key in finished):
        images = load(str(data))
        before = accuracy(pretrained(str(network), str(data)), images.test, images.test_labels)
        rows = []
        for asked in ASKED:
            runs = {key[3:]: result for key, result in finished.items() if key[:3] == (network, data, asked)}
            if runs:
                last = runs[max(runs)]
                cells = [f"{runs[steps]['accuracy']:.2f}" if steps in runs else "" for steps in STEPS]
                rows.append([asked, *cells, f"{1 / last['bops_ratio']:.1f}x", f"{last['macs_ratio']:.2f}"])
        header = ["asked", "neither", "reconstruction", "search", "both", "BOPs", "MACs"]
        sections.append(f"## {network} on {data}\n\nFP32: {before:.2f} %.\n\n{markdown_table(header, rows)}")
    return (
        "# Without labels\n\n"
        "Written by `python benchmarks/post_training.py`: test accuracy after `compress_post_training` with\n"
        f"{SAMPLES} training images, no labels. Search: 300 batches in which gates and quantizers learn; where all\n"
        "bit-widths are given there is none. Reconstruction: 300 steps for each layer. On\n"
        f"{STUDY.machines()}.\n\n" + "\n".join(sections)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg7", "resnet20"])
    parser.add_argument("--data", nargs="+", default=["fashion_mnist", "cifar10"])
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    chosen = parser.parse_args()
    keys = [
        (network, data, asked, *steps)
        for data, network, asked, steps in itertools.product(chosen.data, chosen.networks, ASKED, STEPS)
        if "bits" not in asked or steps[0] == 0
    ]
    STUDY.run(keys, measure, chosen.share)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
