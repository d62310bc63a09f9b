# SPDX-License-Identifier: Apache-2.0
"""overflow_fix: INT8 sums of what is written fit into the 16 bits that CPUs without VNNI have for a pair."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from djpq_nncf import create_compressed_model
from tests.helpers import NETWORKS, QUANTIZATION_ONLY, images, insert_into

Codes = NDArray[np.int8]


def limits(model: nn.Module, *inputs: Tensor, overflow_fix: str) -> dict[str, int]:
    """The greatest bit-width of each weight."""
    quantization = {"overflow_fix": overflow_fix, "weights": {"min_bits": 3}}
    network = insert_into(model, *inputs, **QUANTIZATION_ONLY, quantization=quantization)
    return {name: quantizer.max_bits for name, quantizer in network.weight_quantizers.items()}


@pytest.mark.parametrize(("overflow_fix", "greatest"), [("enable", {7}), ("disable", {8})])
def test_all_or_none(overflow_fix: str, greatest: set[int]) -> None:
    assert set(limits(NETWORKS["projection_residual"](), images(), overflow_fix=overflow_fix).values()) == greatest


class Normalised(nn.Module):
    """Two layers see the input, one of them through arithmetic; a third sees what they made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.left(x) + self.right((x - 0.5) * 2).relu())


def test_first_layers_only() -> None:
    found = limits(Normalised(), images(), overflow_fix="first_layer_only")
    assert found == {"left.weight": 7, "right.weight": 7, "head.weight": 8}


class Lookup(nn.Module):
    """A layer behind an embedding reads no input."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.table(indices))


@pytest.mark.parametrize(("overflow_fix", "head"), [("enable", 7), ("first_layer_only", 8)])
def test_embeddings_are_no_sums(overflow_fix: str, head: int) -> None:
    found = limits(Lookup(), torch.zeros(2, 3, dtype=torch.long), overflow_fix=overflow_fix)
    assert found == {"table.weight": 8, "head.weight": head}


@pytest.mark.parametrize("weights", [{"bits": 8}, {"min_bits": 8, "initial_bits": 8}], ids=["fixed", "learned"])
def test_8_bits_become_7(weights: dict[str, int]) -> None:
    quantization = {"overflow_fix": "enable", "weights": weights}
    network = insert_into(NETWORKS["plain"](), images(), **QUANTIZATION_ONLY, quantization=quantization)
    for quantizer in network.weight_quantizers.values():
        assert (quantizer.bits or quantizer.max_bits) == 7


def stored_codes(path: Path) -> list[Codes]:
    """The INT8 weights in a file, [outputs, summed], adjacent input channels next to each other."""
    if path.suffix == ".onnx":
        tensors = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
        # MatMulInteger takes [summed, outputs]
        arrays = [x.T if x.ndim == 2 else x for x in tensors if x.dtype == np.int8]
    else:
        constants = [node for node in ov.Core().read_model(path).get_ops() if node.get_type_name() == "Constant"]
        arrays = [node.data for node in constants if node.get_element_type() == ov.Type.i8]
    return [np.moveaxis(x, 1, -1).reshape(len(x), -1) for x in arrays if x.ndim > 1]


def sum_of_pairs(x: NDArray[np.uint8], codes: Codes) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """x @ codes.T as AVX2 computes it: two products are added in a saturating int16; and exactly."""
    products = x[None].astype(np.int32) * codes
    products = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(1), pairs.sum(1)


def worst_orders(codes: Codes) -> Iterable[Codes]:
    """As stored, and with the greatest codes of either sign next to each other, whatever layout a kernel has."""
    return codes, np.sort(codes, axis=1), -np.sort(-codes, axis=1)


@pytest.mark.parametrize("suffix", ["xml", "onnx"])
@pytest.mark.parametrize("bits", [8, 6, 2])
def test_no_sum_overflows(bits: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    for overflow_fix in ("enable", "disable"):
        quantization = {"overflow_fix": overflow_fix, "weights": {"bits": bits}, "activations": {"bits": 8}}
        config = {"compression": {"algorithm": "djpq", **QUANTIZATION_ONLY, "quantization": quantization}}
        controller, _ = create_compressed_model(NETWORKS["projection_residual"](), config, init_data=[images()])
        controller.freeze()
        controller.export_model(path)
        overflows, seen = False, np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint8)
        weights = stored_codes(path)
        assert len(weights) == 5
        for codes in (order for weight in weights for order in worst_orders(weight)):
            for x in (np.full(codes.shape[1], 255, np.uint8), np.resize(seen, codes.shape[1])):
                saturated, exact = sum_of_pairs(x, codes)
                overflows |= bool((saturated != exact).any())
        # below 7 bits the container holds no greater codes either
        assert overflows == (overflow_fix == "disable" and bits == 8)
