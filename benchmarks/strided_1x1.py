# SPDX-License-Identifier: Apache-2.0
"""Strided 1x1 convolutions in OpenVINO, as they are and behind a slice: unsteady outputs, and time.

The race needs a CPU with AVX2 and nothing wider (`ONEDNN_MAX_CPU_ISA=AVX2` elsewhere) and two threads.

    python benchmarks/strided_1x1.py  # writes a section of docs/performance.md
"""

import time
from collections import Counter
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from performance_page import machine, markdown_table, write_section

from djpq_nncf.export._openvino_kernels import fake_quantize, separate_strides

BLOCKS = ((24, 8, 32), (56, 128, 56), (72, 128, 28), (120, 256, 14))
MODELS = 30
INFERENCES = 10
TURNS = 200


def block(inputs: int, outputs: int, size: int) -> ov.Model:
    """A 3x3 convolution, and a 1x1 convolution with stride 2, in INT8."""
    image = ops.parameter([-1, inputs, size, size], np.float32)
    x = fake_quantize(image, 2**-4, (0, 255))
    x = fake_quantize(ops.relu(_convolution(x, inputs, inputs, 3, 1)), 2**-2, (0, 255))
    x = fake_quantize(ops.relu(_convolution(x, inputs, outputs, 1, 2)), 2**-2, (0, 255))
    return ov.Model([x], [image], "block")


def _convolution(x: ov.Node, inputs: int, outputs: int, kernel: int, stride: int) -> ov.Node:
    codes = np.random.default_rng(0).integers(-20, 21, (outputs, inputs, kernel, kernel)).astype(np.float32)
    weight = fake_quantize(ops.constant(codes / 64), 2**-6, (-127, 127))
    padding = [kernel // 2] * 2
    node: ov.Node = ops.convolution(x, weight, [stride] * 2, padding, padding, [1, 1])
    return node


def unsteady(model: ov.Model, image: np.ndarray) -> float:
    """Share of the inferences whose output is not the most frequent one."""
    outputs: Counter[bytes] = Counter()
    for _ in range(MODELS):
        run = _compiled(model, 2)
        outputs.update(run(image)[0].tobytes() for _ in range(INFERENCES))
    return 1 - outputs.most_common(1)[0][1] / outputs.total()


def _compiled(model: ov.Model, threads: int) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return ov.Core().compile_model(model, "CPU", settings)


def time_ratio(models: list[ov.Model], image: np.ndarray) -> float:
    """Median time of the second model in that of the first, taken in turns, with one thread."""
    runs = [_compiled(model, 1) for model in models]
    times: list[list[float]] = [[], []]
    for turn in range(2 * TURNS):
        start = time.perf_counter()
        runs[turn % 2](image)
        times[turn % 2].append(time.perf_counter() - start)
    return median(times[1]) / median(times[0])


def main() -> None:
    """Write the table."""
    rows = []
    for inputs, outputs, size in BLOCKS:
        plain, sliced = block(inputs, outputs, size), block(inputs, outputs, size)
        separate_strides(sliced)
        image = (np.random.default_rng(1).integers(0, 256, (4, inputs, size, size)) / 16).astype(np.float32)
        shares = [f"{100 * unsteady(model, image):.0f} %" for model in (plain, sliced)]
        rows.append([f"{inputs} -> {outputs}, {size}x{size}", *shares, f"{time_ratio([plain, sliced], image[:1]):.2f}"])
    header = ["channels, size", "unsteady as it is", "unsteady with a slice", "time with a slice / as it is"]
    write_section(
        "Strided 1x1 convolutions in OpenVINO",
        f"`python benchmarks/strided_1x1.py`, on {machine()}. Four images, two threads, {MODELS} compiled\n"
        f"models with {INFERENCES} inferences each: the share whose output is not the most frequent one. Time of one\n"
        f"image with the slice / without it, medians of {TURNS} in turns.\n\n{markdown_table(header, rows)}",
    )


if __name__ == "__main__":
    main()
