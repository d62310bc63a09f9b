# SPDX-License-Identifier: Apache-2.0
"""What was written computes what the PyTorch model computes, in INT8."""

from pathlib import Path

import openvino as ov
import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.export import export_model, verify_export
from djpq_nncf.nn._frozen import FrozenActivationQuantizer
from tests.export.helpers import NETS, Block, Temporal, make_exact, move_quantizer, randomize, strip

FORMATS = ["xml", "onnx"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("seed", range(2))
def test_exact_arithmetic_gives_the_same_numbers(net: str, suffix: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    image = torch.randn(4, 3, 16, 16)
    stripped = strip(make_exact(NETS[net]()), (image,), exact=True, seed=seed)
    export_model(stripped, tmp_path / f"net.{suffix}")

    found = verify_export(tmp_path / f"net.{suffix}", stripped, image)

    assert found.max_relative_difference < 1e-6
    assert found.int8_mac_share == 1
    assert found.top1_agreement == 1


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("per_channel", [True, False], ids=["per_channel", "per_tensor"])
def test_any_steps_agree_up_to_codes_on_a_border(per_channel: bool, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = torch.randn(4, 3, 16, 16)
    stripped = strip(
        randomize(NETS["residual"]()), (image,), per_channel=per_channel, weight_bits=[4], activation_bits=[8]
    )
    export_model(stripped, tmp_path / f"net.{suffix}")

    found = verify_export(tmp_path / f"net.{suffix}", stripped, image)

    assert found.max_relative_difference < 2e-3
    assert found.int8_mac_share == 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_residual_branch_is_rounded_before_the_sum(bits: int, tmp_path: Path) -> None:
    """OpenVINO's fused convolution, quantizer, sum, quantizer would skip the first rounding."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, 16, 16)
    stripped = strip(make_exact(Block()), (image,), exact=True, weight_bits=[8], activation_bits=[bits])
    export_model(stripped, tmp_path / "net.xml")

    found = verify_export(tmp_path / "net.xml", stripped, image)

    assert found.max_abs_difference < 1e-6
    assert found.int8_mac_share == 1


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_layer_behind_pooling_sees_the_quantizer_in_front_of_it(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = torch.randn(4, 3, 16, 16)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 10)]
    stripped = strip(make_exact(nn.Sequential(*layers)), (image,), exact=True, weight_bits=[5], activation_bits=[3])
    move_quantizer(stripped, "quantizer_1", "relu")
    export_model(stripped, tmp_path / f"net.{suffix}")

    found = verify_export(tmp_path / f"net.{suffix}", stripped, image)

    assert found.max_abs_difference < 1e-6
    assert found.int8_mac_share == 1


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("bits", "step"), [(8, 2**-5), (8, 2**-6), (4, 2**-1), (4, 1.0)], ids=["6_of_8", "4_of_6", "6_of_7.5", "6_of_15"]
)
def test_relu6_before_a_quantizer_of_any_range(bits: int, step: float, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = torch.randn(4, 3, 16, 16)
    model = make_exact(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 1)))
    model.get_parameter("0.weight").data *= 8
    stripped = strip(model, (image,), exact=True, weight_bits=[8], activation_bits=[bits])
    quantizer = stripped.get_submodule("quantizer_1")
    assert isinstance(quantizer, FrozenActivationQuantizer)
    quantizer.step.fill_(step)
    export_model(stripped, tmp_path / f"net.{suffix}")

    found = verify_export(tmp_path / f"net.{suffix}", stripped, image)

    assert found.max_abs_difference < 1e-5
    assert found.int8_mac_share == 1


class Correlation(nn.Module):
    """Convolves with a kernel that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return nn.functional.conv2d(x, nn.functional.adaptive_avg_pool2d(x, 1), stride=2)


STRIDED: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
    "24 channels": (nn.Conv2d(24, 8, 1, stride=2), (16, 12), True),
    "20 channels": (nn.Conv2d(20, 8, 1, stride=2), (16, 12), True),
    "along one dimension": (nn.Conv2d(24, 8, 1, stride=(1, 2)), (15, 12), True),
    "signal": (nn.Conv1d(24, 8, 1, stride=2), (16,), True),
    "whole vectors of channels": (nn.Conv2d(32, 8, 1, stride=2), (16, 12), False),
    "odd size": (nn.Conv2d(24, 8, 1, stride=2), (17, 12), False),
    "padded": (nn.Conv2d(24, 8, 1, stride=2, padding=1), (16, 12), False),
    "3x3": (nn.Conv2d(24, 8, 3, stride=2), (16, 12), False),
    "groups": (nn.Conv2d(24, 24, 1, stride=2, groups=3), (16, 12), False),
    "volume": (nn.Conv3d(24, 8, 1, stride=2), (4, 4, 4), False),
}
"""Layer, size of its input, whether OpenVINO's kernel for AVX2 would copy past its channels."""


@pytest.mark.parametrize("case", STRIDED)
def test_no_strided_1x1_convolution_copies_past_its_channels(case: str, tmp_path: Path) -> None:
    """Threads would write into each other's pixels: a race, which a run need not show, so the file is looked at."""
    layer, size, copies = STRIDED[case]
    torch.manual_seed(0)
    layer.reset_parameters()  # type: ignore[operator]
    image = torch.randn(4, layer.weight.shape[1] * layer.groups, *size)  # type: ignore[operator, index]
    stripped = strip(make_exact(nn.Sequential(layer)), (image,), exact=True)
    export_model(stripped, tmp_path / "net.xml")

    found = verify_export(tmp_path / "net.xml", stripped, image)

    assert found.max_abs_difference < 1e-6
    assert found.layers[0].macs == stripped(image)[0].numel() * layer.weight[0].numel()  # type: ignore[operator, index]
    (written,) = (
        node for node in ov.Core().read_model(tmp_path / "net.xml").get_ops() if node.get_friendly_name() == "0"
    )
    assert (max(written.get_attributes()["strides"]) == 1) == copies


def test_a_computed_kernel_is_left_alone(tmp_path: Path) -> None:
    image = torch.randn(4, 3, 16, 16)
    captured = capture(Correlation().eval(), (image,))
    export_model(captured, tmp_path / "net.xml")  # OpenVINO reads it, and has no kernel to run it with
    operators = [node.get_type_name() for node in ov.Core().read_model(tmp_path / "net.xml").get_ops()]
    assert operators.count("Convolution") == 2 and "Slice" not in operators


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_dimensional_layers(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    signal = torch.randn(4, 3, 20)
    stripped = strip(make_exact(Temporal()), (signal,), exact=True)
    export_model(stripped, tmp_path / f"net.{suffix}")

    found = verify_export(tmp_path / f"net.{suffix}", stripped, signal)

    assert found.max_abs_difference < 1e-6
    assert found.int8_mac_share == 1
    assert found.top1_agreement is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_float_model_stays_float(suffix: str, tmp_path: Path) -> None:
    image = torch.randn(4, 3, 16, 16)
    captured = capture(NETS["plain"]().eval(), (image,))
    export_model(captured, tmp_path / f"net.{suffix}")

    found = verify_export(tmp_path / f"net.{suffix}", captured, image)

    assert found.max_relative_difference < 1e-5
    assert found.int8_mac_share == 0
    assert {layer.name for layer in found.layers} == {"features.0", "features.4", "features.6", "head.1", "head.4"}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2"])
def test_torchvision(architecture: str, suffix: str, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    image = (torch.randn(2, 3, 64, 64) * 256).round() / 256  # no value within rounding errors of a border
    model = make_exact(getattr(torchvision.models, architecture)())
    stripped = strip(model, (image,), exact=True, weight_bits=range(3, 9), activation_bits=range(4, 9))
    export_model(stripped, tmp_path / f"net.{suffix}")

    found = verify_export(tmp_path / f"net.{suffix}", stripped, image)

    assert found.max_relative_difference < 1e-6
    assert found.int8_mac_share == 1


class Permuted(nn.Module):
    """Channels in another order, one that is not its own inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 3)
        self.register_buffer("order", torch.tensor([3, 0, 4, 2, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.index_select(x, 1, self.order))


@pytest.mark.parametrize("suffix", FORMATS)
def test_permuted_channels(suffix: str, tmp_path: Path) -> None:
    """OpenVINO's fusion of a permutation with the weights behind it would apply its inverse."""
    image = torch.randn(2, 5, 8, 8)
    network = capture(Permuted().eval(), (image,))
    export_model(network, tmp_path / f"net.{suffix}")
    assert verify_export(tmp_path / f"net.{suffix}", network, image).max_relative_difference < 1e-6
