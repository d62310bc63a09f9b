# SPDX-License-Identifier: Apache-2.0
"""Weights in 4 or 2 bits: smaller files that compute the same, in float."""

from pathlib import Path

import onnx
import openvino as ov
import pytest
import torch
from torch import Tensor, fx, nn

from djpq_nncf.cost._recount import recount
from djpq_nncf.errors import ExportError
from djpq_nncf.export import export_model, verify_export
from tests.export.helpers import NETS, expected_bits, file_size, make_exact, strip
from tests.export.transformers import compress

FORMATS = ["xml", "onnx"]


class Mlp(nn.Module):
    """Linear layers wide enough that OpenVINO would quantize their inputs anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def stored_types(path: Path) -> list[str]:
    """Types of the stored integers with more than one dimension."""
    if path.suffix == ".onnx":
        tensors = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1]
        return [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors]
    nodes = [node for node in ov.Core().read_model(path).get_ordered_ops() if node.get_type_name() == "Constant"]
    return [node.get_element_type().to_string() for node in nodes if len(node.output(0).get_shape()) > 1]


def check_same(stripped: fx.GraphModule, image: Tensor, path: Path) -> None:
    """The packed file is read back, and computes what the model does, with the same bits in it."""
    usual = path.with_name(f"usual{path.suffix}")
    export_model(stripped, usual)
    export_model(stripped, path, packed_weights=True)

    assert verify_export(path, stripped, image).max_relative_difference < 1e-6
    assert [(layer.weight_bits, layer.activation_bits) for layer in recount(path).layers] == expected_bits(stripped)
    assert recount(path).bops == recount(usual).bops


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("net", NETS)
def test_the_same_outputs_and_bits(net: str, suffix: str, tmp_path: Path) -> None:
    image = torch.randn(4, 3, 16, 16)
    stripped = strip(make_exact(NETS[net]()), (image,), exact=True, weight_bits=[2, 3, 4, 8], seed=1)
    check_same(stripped, image, tmp_path / f"net.{suffix}")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("shape", [(8, 256), (3, 5, 256)], ids=["matrix", "sequence"])
def test_linear_layers(shape: tuple[int, ...], bits: int, suffix: str, tmp_path: Path) -> None:
    """OpenVINO would quantize inputs of packed linear layers in groups of 32, with steps that follow the data."""
    x = torch.randn(shape)
    stripped = strip(make_exact(Mlp()), (x,), exact=True, weight_bits=[bits])
    check_same(stripped, x, tmp_path / f"net.{suffix}")


@pytest.mark.parametrize(
    ("suffix", "bits", "stored"),
    [
        *[("xml", 2, "u2"), ("xml", 3, "i4"), ("xml", 4, "i4"), ("xml", 5, "i8")],
        *[("onnx", 2, "INT4"), ("onnx", 4, "INT4"), ("onnx", 5, "INT8")],
    ],
)
def test_the_narrowest_type_that_fits(suffix: str, bits: int, stored: str, tmp_path: Path) -> None:
    image, path = torch.randn(2, 3, 16, 16), tmp_path / f"net.{suffix}"
    stripped = strip(make_exact(nn.Sequential(nn.Conv2d(3, 8, 3))), (image,), weight_bits=[bits], exact=True)
    export_model(stripped, path, packed_weights=True)
    assert stored in stored_types(path)
    assert {"i4", "u2", "INT4"}.isdisjoint({*stored_types(path)} - {stored})
    # INT8 where it fits nowhere else, and then as fast as ever
    assert verify_export(path, stripped, image).int8_mac_share == (bits == 5)


@pytest.mark.parametrize(("suffix", "bits", "share"), [("xml", 2, 0.3), ("xml", 4, 0.55), ("onnx", 4, 0.55)])
def test_files_are_smaller(suffix: str, bits: int, share: float, tmp_path: Path) -> None:
    x = torch.randn(2, 512)
    stripped = strip(make_exact(nn.Sequential(nn.Linear(512, 1024))), (x,), exact=True, weight_bits=[bits])
    packed, usual = tmp_path / f"packed.{suffix}", tmp_path / f"usual.{suffix}"
    export_model(stripped, packed, packed_weights=True)
    export_model(stripped, usual)
    assert file_size(packed) < share * file_size(usual)


class Lookup(nn.Module):
    """An embedding in front of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 64), nn.Linear(64, 8)

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.table(indices))


@pytest.mark.parametrize("suffix", FORMATS)
def test_embeddings(suffix: str, tmp_path: Path) -> None:
    """ONNX takes no rows out of a table of 4-bit integers, so that it stays INT8."""
    indices, path = torch.randint(0, 50, (4, 12)), tmp_path / f"net.{suffix}"
    controller = compress(Lookup(), indices, bits=[4])
    controller.export_model(path, packed_weights=True)
    assert verify_export(path, controller.strip(), indices).max_relative_difference < 1e-5
    assert sorted(stored_types(path))[-2:] == (["i4", "i4"] if suffix == "xml" else ["INT4", "INT8"])


def test_onnx_has_4_bits_from_opset_21_on(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 16, 16)
    stripped = strip(make_exact(NETS["plain"]()), (image,), exact=True)
    with pytest.raises(ExportError, match=r"packed_weights and opset=20: 4-bit integers came with opset 21"):
        export_model(stripped, tmp_path / "net.onnx", opset=20, packed_weights=True)
