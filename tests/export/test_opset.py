# SPDX-License-Identifier: Apache-2.0
"""ONNX files for other operator sets than the default compute the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torchvision.models import MobileNetV2, MobileNetV3, ResNet
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock

from djpq_nncf.capture import capture
from djpq_nncf.cost._recount import recount
from djpq_nncf.errors import ExportError
from djpq_nncf.export import export_model, verify_export
from tests.export.helpers import NETS, make_exact, strip
from tests.helpers import FEW_INVERTED_RESIDUALS


def run(path: Path, image: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return output


def check_alike(stripped: fx.GraphModule, image: Tensor, opset: int, folder: Path) -> None:
    """The file for an opset is valid, holds the same integers and computes what that of the default opset does."""
    usual, other = folder / "usual.onnx", folder / "other.onnx"
    export_model(stripped, usual)
    export_model(stripped, other, opset=opset)

    model = onnx.load(other)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(usual).graph.initializer if len(tensor.dims) > 1}
    assert weights == {tensor.name: tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    expected = run(usual, image)
    assert expected.std() > 0
    assert np.abs(run(other, image) - expected).max() <= 1e-6 * np.ptp(expected)
    assert [(layer.name, layer.macs, layer.bops) for layer in recount(other).layers] == [
        (layer.name, layer.macs, layer.bops) for layer in recount(usual).layers
    ]
    found, before = verify_export(other, stripped, image), verify_export(usual, stripped, image)
    assert found.max_relative_difference < 1e-6
    assert found.int8_mac_share == before.int8_mac_share


@pytest.mark.parametrize("opset", [13, 17, 20, 25])
@pytest.mark.parametrize("net", ["residual", "inverted"])
def test_small_networks(net: str, opset: int, tmp_path: Path) -> None:
    image = torch.randn(4, 3, 16, 16)
    check_alike(strip(make_exact(NETS[net]()), (image,), exact=True), image, opset, tmp_path)


def vision_transformer() -> nn.Module:
    model = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    nn.init.normal_(model.heads.head.weight)  # zero as it comes
    return model


def mobilenet_v3() -> nn.Module:
    """One block of each kind: with and without squeeze-and-excitation, ReLU and h-swish."""
    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1),
        InvertedResidualConfig(16, 3, 72, 24, False, "RE", 2, 1, 1),
        InvertedResidualConfig(24, 5, 96, 40, True, "HS", 2, 1, 1),
        InvertedResidualConfig(40, 5, 240, 40, True, "HS", 1, 1, 1),
    ]
    return MobileNetV3(blocks, last_channel=128, num_classes=10)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(BasicBlock, [1, 2, 1, 1], num_classes=10),
    "mobilenet_v2": lambda: MobileNetV2(10, inverted_residual_setting=FEW_INVERTED_RESIDUALS),
    "mobilenet_v3": mobilenet_v3,
    "vision_transformer": vision_transformer,
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_in_opset_13(architecture: str, tmp_path: Path) -> None:
    image = torch.randn(2, 3, 64, 64)
    bits = {"weight_bits": range(3, 9), "activation_bits": range(4, 9)}
    check_alike(strip(make_exact(ARCHITECTURES[architecture]()), (image,), exact=True, **bits), image, 13, tmp_path)


def test_the_format_is_no_younger_than_the_opset(tmp_path: Path) -> None:
    """A runtime that knows no later opset reads no later IR version."""
    network = capture(nn.Conv2d(3, 4, 3).eval(), (torch.randn(2, 3, 8, 8),))
    for opset, ir_version in ((13, 7), (17, 8), (21, 10)):
        export_model(network, tmp_path / "net.onnx", opset=opset)
        assert onnx.load(tmp_path / "net.onnx").ir_version == ir_version


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x, x.shape[2:], eps=1e-3),
    "group_norm": lambda x: F.group_norm(x, 2),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "mean": lambda x: x.mean((2, 3)),
    "mean_of_all": lambda x: x - x.mean(),
    "amax": lambda x: x.amax(1, keepdim=True) + x.amin(2, keepdim=True),
    "norm": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "chunk_unevenly": lambda x: torch.cat(x[:, :5].chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.cat(x.split([1, 4, 1], 1)[::-1], 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "bilinear": lambda x: F.interpolate(x, size=(12, 9), mode="bilinear"),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive_pool": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "flatten_batch": lambda x: x.reshape(x.shape[0] * x.shape[1], -1).softmax(-1),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "write": lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 5, 2),
    "batch_norm": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos(), is_causal=True),
    "cumsum": lambda x: x.cumsum(2),
}


class Applied(nn.Module):
    """A convolution, so that there is a layer, then an operation."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.operation = nn.Conv2d(3, 6, 3), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.conv(x))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operators_in_opset_13(operation: str, tmp_path: Path) -> None:
    image, path = torch.randn(2, 3, 8, 8), tmp_path / "net.onnx"
    network = capture(Applied(OPERATIONS[operation]).eval(), (image,))
    export_model(network, path, opset=13)

    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert verify_export(path, network, image).max_relative_difference < 1e-5
    assert verify_export(path, network, torch.randn(5, 3, 8, 8)).max_relative_difference < 1e-5


UNKNOWN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "grid_sample": (
        lambda x: F.grid_sample(x, torch.zeros(1, 4, 4, 2).expand(x.shape[0], -1, -1, -1), align_corners=False),
        r"opset 13 has no GridSample, which '.*grid_sampler.*' needs. Pass opset=16 or more",
    ),
    "scatter_add": (
        lambda x: x.scatter_add(1, torch.zeros_like(x, dtype=torch.long), x),
        r"opset 13 has no ScatterElements with reduction, which .* needs. Pass opset=16 or more",
    ),
    "scatter_max": (
        lambda x: x.scatter_reduce(1, torch.zeros_like(x, dtype=torch.long), x, "amax"),
        r"opset 13 has no ScatterElements with reduction",
    ),
}


@pytest.mark.parametrize("operation", UNKNOWN)
def test_what_an_opset_cannot_say_is_an_error(operation: str, tmp_path: Path) -> None:
    apply, message = UNKNOWN[operation]
    network = capture(Applied(apply).eval(), (torch.randn(2, 3, 8, 8),))
    with pytest.raises(ExportError, match=message):
        export_model(network, tmp_path / "net.onnx", opset=13)
    assert not list(tmp_path.iterdir())
    export_model(network, tmp_path / "net.onnx", opset=18)


@pytest.mark.parametrize("opset", [12, 26])
def test_opsets_out_of_range(opset: int, tmp_path: Path) -> None:
    network = capture(nn.Conv2d(3, 4, 3).eval(), (torch.randn(2, 3, 8, 8),))
    with pytest.raises(ExportError, match=rf"net\.onnx with opset={opset}: pass one from 13 .* to 25"):
        export_model(network, tmp_path / "net.onnx", opset=opset)
    with pytest.raises(ExportError, match=r"net\.xml with opset=21: OpenVINO IR has none"):
        export_model(network, tmp_path / "net.xml", opset=21)
