# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits, stored in INT8 as by default or packed (``export_model(..., packed_weights=True)``).

The same network as FP32, with INT8 containers and with packed weights, in both runtimes: size of the file, and latency
of one image, the files taken in turn; the median of the rounds counts.

    python benchmarks/packed_weights.py
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import torch
import torchvision
from performance_page import machine, markdown_table, write_section

from djpq_nncf import create_compressed_model
from djpq_nncf.capture import capture
from djpq_nncf.export import export_model
from djpq_nncf.export._runtime import open_runtime

KINDS = ("FP32", "INT8", "packed")
HEADER = (
    *("network", "weights", "runtime", "FP32 file", "INT8 file", "packed file", "packed / INT8"),
    *("FP32", "INT8", "packed", "packed / INT8"),
)


def write_files(model_name: str, bits: int, size: int, suffix: str, folder: Path) -> dict[str, Path]:
    """The files of a network with random weights of some bits, 8-bit activations."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(model_name, weights=None).eval()
    images = torch.randn(2, 3, size, size)
    quantization = {"weights": {"bits": bits}, "activations": {"bits": 8}}
    djpq = {"algorithm": "djpq", "pruning": {"enabled": False}, "quantization": quantization}
    ctrl, _ = create_compressed_model(model, {"compression": djpq}, init_data=[images])
    ctrl.freeze()
    paths = {kind: folder / f"{kind}{suffix}" for kind in KINDS}
    export_model(capture(model, (images,)), paths["FP32"])
    ctrl.export_model(paths["INT8"])
    ctrl.export_model(paths["packed"], packed_weights=True)
    return paths


def latencies(paths: dict[str, Path], size: int, rounds: int) -> dict[str, float]:
    """Median seconds of one image for each file, taken in turn."""
    image = torch.randn(1, 3, size, size).numpy()
    runtimes = {kind: open_runtime(path) for kind, path in paths.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in runtimes}
    for round_number in range(rounds + 3):
        for kind, runtime in runtimes.items():
            start = time.perf_counter()
            runtime.run([image])
            if round_number >= 3:  # the first ones allocate
                taken[kind].append(time.perf_counter() - start)
    return {kind: median(values) for kind, values in taken.items()}


def bytes_of(path: Path) -> int:
    return sum(part.stat().st_size for part in {path, path.with_suffix(".bin")} if part.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 2])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for model_name in arguments.models:
        for bits in arguments.bits:
            for runtime, suffix in (("OpenVINO", ".xml"), ("ONNX Runtime", ".onnx")):
                with tempfile.TemporaryDirectory() as folder:
                    paths = write_files(model_name, bits, arguments.size, suffix, Path(folder))
                    sizes = {kind: bytes_of(path) for kind, path in paths.items()}
                    seconds = latencies(paths, arguments.size, arguments.rounds)
                row = [model_name, f"{bits} bits", runtime, *(f"{sizes[kind] / 1e6:.2f} MB" for kind in KINDS)]
                row += [f"{sizes['packed'] / sizes['INT8']:.2f}", *(f"{1000 * seconds[kind]:.2f} ms" for kind in KINDS)]
                row += [f"{seconds['packed'] / seconds['INT8']:.2f}"]
                rows.append(row)
                print(" | ".join(row), flush=True)
    table = markdown_table(HEADER, rows, text_columns=3)
    print(table)
    if not arguments.no_page:
        conditions = f"{arguments.size}x{arguments.size}, batch 1, 8-bit activations, on {machine()}"
        text = f"`python benchmarks/packed_weights.py`, {conditions}.\n\n{table}"
        write_section("Packed weights", text)


if __name__ == "__main__":
    main()
