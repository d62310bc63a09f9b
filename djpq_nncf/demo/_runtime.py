# SPDX-License-Identifier: Apache-2.0
"""Exported files as functions of an array, on one thread, and the time they take."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Network = Callable[[NDArray[np.float32]], NDArray[Any]]


def load(path: Path) -> Network:
    """A ``.xml`` file in OpenVINO or an ``.onnx`` file in ONNX Runtime; float layers run in 32 bits."""
    return _load_openvino(path) if path.suffix == ".xml" else _load_onnx(path)


def runtime_name(path: Path) -> str:
    """What :func:`load` runs a file in."""
    return "OpenVINO" if path.suffix == ".xml" else "ONNX Runtime"


def file_size(path: Path) -> int:
    """Bytes on disk; an IR is two files."""
    files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    return sum(file.stat().st_size for file in files)


def latencies(networks: Sequence[Network], images: NDArray[np.float32], *, runs: int) -> list[float]:
    """Median seconds of one inference on ``images`` for each network.

    The networks take turns, so that whatever else the machine does meets them alike.
    """
    for network in networks:
        for _ in range(3):
            network(images)
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(runs):
        for network, taken in zip(networks, seconds, strict=True):
            start = time.perf_counter()
            network(images)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def _load_openvino(path: Path) -> Network:
    import openvino

    compiled = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    )
    return lambda images: compiled([images])[0]


def _load_onnx(path: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
