# SPDX-License-Identifier: Apache-2.0
"""What OpenVINO executes of our INT8 files, next to NNCF's post-training quantization of the same networks.

The convolutional networks of the zoo in their small form, all channels, 8 bits, no training; NNCF takes the same
images. Both files are saved, read back and compiled for the CPU. Every figure is "ours / NNCF's".

    python -m benchmarks.int8_graphs
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import nncf
import torch

from benchmarks.performance_page import machine, markdown_table, write_section
from djpq_nncf.cost import recount
from djpq_nncf.export import export_model
from djpq_nncf.export._runtime import open_runtime
from tests.export.executed import ExecutedGraph, eight_bits, executed_graph, write_post_training
from tests.zoo import models  # noqa: F401  (fills the zoo)
from tests.zoo.registry import ZOO

FAMILIES = (
    "VGG", "AlexNet", "ResNet", "DenseNet", "Inception", "SqueezeNet", "MobileNet", "MobileNetV3", "ShuffleNet",
    "EfficientNet", "RegNet", "ConvNeXt", "Segmentation", "Detection", "MLPerf Tiny", "Video CNN",
)  # fmt: skip
COUNTED: dict[str, Callable[[ExecutedGraph], int]] = {
    "float nodes": lambda graph: len(graph.floating),
    "float layers": lambda graph: sum(not layer.is_int8 for layer in graph.layers),
    "quantize or dequantize": lambda graph: len(graph.conversions),
    "element-wise": lambda graph: len(graph.of("Eltwise")) + len(graph.of("Subgraph")),
    "all nodes": lambda graph: len(graph.nodes),
}


def write_files(name: str, folder: Path) -> dict[str, Path]:
    """Ours, and NNCF's by preset."""
    example = ZOO[name].build("small")
    (x,) = example.inputs()[0]
    paths = {kind: folder / f"{kind}.xml" for kind in ("ours", "performance", "mixed")}
    export_model(eight_bits(example.module, x), paths["ours"])
    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        write_post_training(ZOO[name].build("small").module, [x], paths[preset.value], preset)
    return paths


def int8_share(path: Path) -> float:
    """Share of the multiply-accumulates of convolutions and linear layers that INT8 kernels compute."""
    layers = recount(path).layers
    kernels = open_runtime(path).kernels([layer.name for layer in layers])
    int8 = sum(layer.macs for layer in layers if layer.name in kernels and kernels[layer.name].int8)
    return int8 / sum(layer.macs for layer in layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cnns = [name for name, model in ZOO.items() if model.family in FAMILIES]
    parser.add_argument("--models", nargs="+", default=cnns, choices=cnns, metavar="MODEL")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows, differing = [], []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_files(name, Path(folder))
            shares = [int8_share(paths[kind]) for kind in ("ours", "performance")]
            graphs = {kind: executed_graph(path) for kind, path in paths.items()}
        counts = {kind: [count(graph) for count in COUNTED.values()] for kind, graph in graphs.items()}
        pairs = zip(counts["ours"], counts["performance"], strict=True)
        rows.append([name, " / ".join(f"{100 * share:.1f} %" for share in shares), *(f"{a} / {b}" for a, b in pairs)])
        print(" | ".join(rows[-1]), flush=True)
        if counts["mixed"] != counts["performance"]:
            differing.append(f"{name} ({', '.join(map(str, counts['mixed']))})")
    table = markdown_table(["network", "MACs in INT8", *COUNTED], rows)
    print(table)
    mixed = "counts the same everywhere" if not differing else "differs for " + "; ".join(differing)
    if not arguments.no_page:
        notes = f"""\
`python -m benchmarks.int8_graphs`, on {machine()}.

What OpenVINO executes of a network in 8 bits, ours / NNCF's post-training quantization of the same network (saved and
read back; nodes that depend on the input): nodes that compute in float, convolutions and linear layers among them,
nodes that only turn numbers into codes or back (besides the one for the input of the network), element-wise operations
on their own, and all nodes. The preset `mixed` {mixed}.

{table}"""
        write_section("INT8 in the executed graph", notes)


if __name__ == "__main__":
    main()
