# SPDX-License-Identifier: Apache-2.0
"""Counts MACs and BOPs again from an exported file: from the shapes and the grids found in it alone."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from djpq_nncf.errors import ExportError

FLOAT_BITS = 32
SHAPES_KEY = "example_shapes"
"""Metadata of a file with dynamic sizes: input name -> shape of the example (JSON), for which costs are counted."""


@dataclass(frozen=True)
class FileLayer:
    """One conv, linear or matmul of an exported file.

    ``weight_bits`` and ``activation_bits`` describe the second and the first operand; 32 means float.
    """

    name: str
    operator: str
    macs: int
    weight_bits: int
    activation_bits: int

    @property
    def bops(self) -> int:
        """Bit operations: MACs times the bits of both operands (Wang et al. 2020, equation (14))."""
        return self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class FileCost:
    """What an exported network costs per sample."""

    layers: tuple[FileLayer, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        return sum(layer.bops for layer in self.layers)


def recount(path: str | Path) -> FileCost:
    """Reads an exported ``.xml`` or ``.onnx`` file and counts what one sample costs.

    MACs follow from the shapes in the file (padding counts); the bits of weights are those of the smallest
    symmetric grid that holds the integers stored, the bits of activations follow from the clamp or the
    levels of the quantizer in front of the layer.

    Raises:
        ExportError: the file is missing or damaged, or is neither OpenVINO IR nor ONNX.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Iterator[FileLayer]]] = {".xml": _openvino, ".onnx": _onnx}
    reader = readers.get(path.suffix)
    if reader is None:
        raise ExportError(f"Cannot recount {path}: expected a .xml (OpenVINO IR) or an .onnx file.")
    if not path.is_file():
        raise ExportError(f"Cannot recount {path}: there is no such file. Export the model first.")
    return FileCost(tuple(reader(path)))


def damaged(path: Path, error: Exception) -> ExportError:
    """What to tell about a file that a runtime cannot read."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return ExportError(f"{path} is damaged or incomplete ({reason}). Export the model again.")


def signed_bits(codes: NDArray[np.generic]) -> int:
    """Bits of the smallest grid -(2^(b-1) - 1) ... 2^(b-1) - 1, b >= 2, that holds ``codes``.

    Codes with a common factor lie on a coarser grid: the factor belongs to the step.
    """
    magnitudes = np.abs(codes.astype(np.int64))
    factor = int(np.gcd.reduce(magnitudes, axis=None)) if magnitudes.size else 0
    return max(2, (int(magnitudes.max()) // factor).bit_length() + 1) if factor else 2


def range_bits(lowest: int, highest: int) -> int:
    """Bits of the smallest grid, at least 2, that holds the codes from ``lowest`` to ``highest``.

    Unsigned: 0 ... 2^b - 1, asymmetric: as many codes around zero, symmetric: one code fewer.
    """
    return max(2, (highest - lowest).bit_length())


def convolution_macs(output: Iterable[int], weight_per_output: Iterable[int]) -> int:
    """MACs of a convolution: one per output element, input channel of its group and kernel element."""
    return prod(output) * prod(weight_per_output)


def _openvino(path: Path) -> Iterator[FileLayer]:
    from djpq_nncf.cost._recount_openvino import openvino_layers

    return openvino_layers(path)


def _onnx(path: Path) -> Iterator[FileLayer]:
    from djpq_nncf.cost._recount_onnx import onnx_layers

    return onnx_layers(path)
