# SPDX-License-Identifier: Apache-2.0
"""Biases are whole multiples of the step of the sums, so that every runtime holds the same numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.export import export_model, open_runtime, round_biases
from tests.export.helpers import NETS, randomize, strip


class Norms(nn.Module):
    """A bias of its own, BatchNorm with parameters and (in the test) without; a linear layer, whose bias is a float."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Conv2d(3, 8, 3)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.alone(x).relu()
        for layer in (self.first, self.second, self.third):
            x = layer(x).relu()
        return self.head(x.amax((2, 3)))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("bits", "finer"), [(2, 32), (4, 8), (8, 1)])
def test_folded_biases_are_multiples_of_the_step_of_the_sums(bits: int, finer: int, per_channel: bool) -> None:
    torch.manual_seed(0)
    model = randomize(Norms())
    model.second[1].weight = model.second[1].bias = None
    model.second[1].affine = False
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    image = torch.randn(4, 3, 16, 16)
    options = {"per_channel": per_channel, "weight_bits": [bits], "activation_bits": [8]}
    stripped = strip(model, (image,), **options)
    before = [value.clone() for value in stripped.state_dict().values()]

    round_biases(stripped)

    calls = {node.name: node for node in stripped.graph.nodes}
    layers = [node for node in calls.values() if node.target == torch.ops.aten.conv2d.default]
    assert len(layers) == 4
    for layer in layers:
        source = layer.args[0]
        step = stripped.get_submodule(source.target).step.double()
        step = step * stripped.get_submodule(layer.args[1].target).step.double() / finer
        bias = torch.zeros(8, dtype=torch.float64)
        if len(layer.args) > 2 and layer.args[2] is not None:
            bias = bias + stripped.get_parameter(layer.args[2].target).double()
        user = next(iter(layer.users))
        if user.op == "call_module":
            norm = stripped.get_submodule(user.target)
            zero = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
            scale = norm.double()(zero + 1).flatten() - norm(zero).flatten()
            bias, step = norm(bias.reshape(1, 8, 1, 1)).flatten(), step * scale.abs()
        codes = bias / step
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-2)
    changed = sum(
        not torch.equal(old, new) for old, new in zip(before, stripped.float().state_dict().values(), strict=True)
    )
    assert changed == 4


def test_a_parameter_that_two_layers_read_stays() -> None:
    torch.manual_seed(0)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).relu() * 3)

    stripped = strip(Shared(), (torch.randn(2, 3, 8, 8),), weight_bits=[4], activation_bits=[8])
    bias = stripped.get_parameter("conv.bias").clone()

    round_biases(stripped)

    assert torch.equal(stripped.get_parameter("conv.bias"), bias)


@pytest.mark.parametrize("net", ["plain", "residual", "inverted"])
@pytest.mark.parametrize("bits", [2, 4])
def test_onnx_runtime_differs_on_borders_alone(net: str, bits: int, tmp_path: Path) -> None:
    """Without the rounding nearly every sample differs."""
    torch.manual_seed(0)
    image = torch.randn(128, 3, 16, 16)
    stripped = strip(randomize(NETS[net]()), (image,), weight_bits=[bits], activation_bits=[4])
    round_biases(stripped)
    export_model(stripped, tmp_path / "net.onnx")

    (found,) = open_runtime(tmp_path / "net.onnx").run([image.numpy()])

    with torch.no_grad():
        expected = stripped(image)
    differs = (torch.from_numpy(found) - expected).abs().amax(1) > 1e-4 * (expected.max() - expected.min())
    assert float(differs.float().mean()) < 0.05
