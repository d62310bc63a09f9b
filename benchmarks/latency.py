# SPDX-License-Identifier: Apache-2.0
"""How fast compressed networks run: FP32, INT8 by NNCF, and ours with channels removed at random, without training.

"by hand" is a float network of the very same widths, quantized by NNCF: what somebody would get who built it so.
Latency of one image on all threads and throughput with one image a thread, the files taken in turn, medians. Counts are
in blocks as ``pruning.round_to`` has them by default, or any ("odd counts").

    python benchmarks/latency.py
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torchvision
from performance_page import machine, markdown_table, write_section
from torch import nn

from djpq_nncf import create_compressed_model
from djpq_nncf.benchmark import (
    RUNTIMES,
    BenchmarkResult,
    Entry,
    quantize_file,
    random_calibration,
    remove_at_random,
    run_benchmark,
)
from djpq_nncf.capture import capture
from djpq_nncf.export import export_model

VARIANTS = ((0.0, None), (0.3, 1), (0.3, None), (0.5, None))
"""Shares of the channels that are removed, and ``round_to``."""
NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "tf_efficientnet_lite0")
DJPQ: dict[str, Any] = {
    "algorithm": "djpq",
    "pruning": {"gamma": 0},
    "quantization": {"weights": {"bits": 8}, "activations": {"bits": 8}},
    "initializer": {
        "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
        "bias_correction": {"num_bias_correction_samples": 0},
    },
}
HEADER = ("network", "runtime", "", "channels", "latency", "times NNCF INT8", "images/s", "times NNCF INT8")


def load(name: str) -> nn.Module:
    """A network with random weights: torchvision's, or timm's where torchvision has none of that name."""
    torch.manual_seed(0)
    if name in torchvision.models.list_models():
        return torchvision.models.get_model(name, weights=None).eval()
    import timm

    return timm.create_model(name, pretrained=False).eval()


def smaller(model: nn.Module, image: torch.Tensor, share: float, round_to: int | None, *, quantized: bool) -> Any:
    """A controller with a share of the channels closed; the same ones with and without quantizers."""
    config = deepcopy(DJPQ)
    config["quantization"]["enabled"] = quantized
    ctrl, _ = create_compressed_model(model, {"compression": config}, init_data=[image], example_inputs=image)
    remove_at_random(ctrl, share, round_to)
    ctrl.freeze()
    return ctrl


def write_files(name: str, suffixes: Iterable[str], folder: Path) -> Iterator[Entry]:
    """FP32, INT8 by NNCF, and for each variant ours and the one by hand."""
    model, image = load(name), torch.randn(1, 3, 224, 224)
    suffixes = tuple(suffixes)

    def entry(stem: str, suffix: str, label: str) -> Entry:
        path = folder / f"{name}_{stem}{suffix}"
        return Entry(name, path, label, is_baseline=stem == "nncf", shape=tuple(image.shape))

    def quantize(source: Entry, target: Entry) -> Entry:
        quantize_file(source.path, target.path, random_calibration(source.path, tuple(image.shape)))
        return target

    captured = capture(model, (image,))
    for suffix in suffixes:
        original = entry("fp32", suffix, "FP32")
        export_model(captured, original.path)
        yield quantize(original, entry("nncf", suffix, "INT8, NNCF"))
        yield original
    for share, round_to in VARIANTS:
        label = f"{share:.0%} removed" + (", odd counts" if round_to == 1 else "") if share else "all"
        ours = smaller(model, image, share, round_to, quantized=True)
        reference = smaller(model, image, share, round_to, quantized=False).strip() if share else None
        for suffix in suffixes:
            stem = f"{100 * share:g}_{round_to}"
            compressed = entry(stem, suffix, f"INT8, djpq_nncf; {label}")
            ours.export_model(compressed.path)
            yield compressed
            if reference is not None:
                float_file = entry(f"float_{stem}", suffix, "")
                export_model(reference, float_file.path)
                yield quantize(float_file, entry(f"hand_{stem}", suffix, f"INT8, by hand; {label}"))


def table_rows(result: BenchmarkResult) -> list[tuple[str, ...]]:
    """By runtime, in the order of the files."""
    rows = sorted(result.rows, key=lambda row: row.runtime, reverse=True)
    return [
        (
            row.model,
            row.runtime,
            *(row.variant or "").partition("; ")[::2],
            f"{1000 * row.latency.median:.2f} ms",
            f"{row.latency_ratio:.2f}",
            f"{row.throughput.median:.1f}",
            f"{row.throughput_ratio:.2f}",
        )
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=NETWORKS)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            suffixes = [RUNTIMES[runtime] for runtime in arguments.runtimes]
            entries = list(write_files(name, suffixes, Path(folder)))
            result = run_benchmark(entries, rounds=arguments.rounds, threads=arguments.threads)
        table = markdown_table(HEADER, table_rows(result), text_columns=4)
        print(table, flush=True)
        if not arguments.no_page:
            conditions = f"random weights, 224x224, {arguments.threads} threads, {arguments.rounds} rounds, {machine()}"
            write_section(f"Latency: {name}", f"`python benchmarks/latency.py`: {conditions}.\n\n{table}")


if __name__ == "__main__":
    main()
