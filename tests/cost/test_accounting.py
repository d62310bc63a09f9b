# SPDX-License-Identifier: Apache-2.0
"""MACs and BOPs: the figures of the paper's Tables 1 to 3, and the differentiable count against the exact one."""

from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from djpq_nncf.algorithms import create_compressed_model
from djpq_nncf.capture import capture
from djpq_nncf.channels import analyse_channels
from djpq_nncf.cost import CostModel, MacOperator, find_mac_operators
from djpq_nncf.passes import kept_channels
from tests.helpers import NETWORKS, PRUNING_ONLY, VGG7, images, insert_into, random_gates

PAPER: dict[str, tuple[Callable[[], nn.Module], int, float, float]] = {
    "vgg7": (VGG7, 32, 0.613, 629.0),
    "resnet18": (torchvision.models.resnet18, 224, 1.814, 1858.0),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 224, 0.301, 0.301 * 1024),
}
"""Factory, image size, GMACs, GBOPs of the 32-bit network."""


def hooked_macs(model: nn.Module, x: Tensor, *, depthwise_as_dense: bool = False) -> int:
    """MACs for one sample by the textbook's formula, from the modules and what they return."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            groups = 1 if depthwise_as_dense else module.groups
            kernel = prod(module.kernel_size) * module.in_channels // groups
            total += kernel * module.out_channels * output.shape[2] * output.shape[3]
        elif isinstance(module, nn.Linear):
            total += module.in_features * module.out_features

    handles = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad():
        model.eval()(x[:1])
    for handle in handles:
        handle.remove()
    return total


def operators_of(model: nn.Module, x: Tensor) -> tuple[MacOperator, ...]:
    return find_mac_operators(capture(model.eval(), (x,)))


@pytest.mark.parametrize("name", PAPER)
def test_tables_of_the_paper(name: str) -> None:
    factory, size, gmacs, gbops = PAPER[name]
    model, x = factory(), images(2, size)
    graph = capture(model.eval(), (x,))
    operators = find_mac_operators(graph)
    cost = CostModel(operators, analyse_channels(graph))
    assert cost.baseline_macs == hooked_macs(model, x)
    assert cost.baseline_macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert cost.baseline_bops / 1e9 == pytest.approx(gbops, rel=0.01)
    assert cost.baseline_bops == cost.baseline_macs * 1024


def test_mobilenet_as_the_paper_counts_it() -> None:
    """Table 3 takes depthwise convolutions for dense ones; the product does not."""
    model, x = torchvision.models.mobilenet_v2(), images(2, 224)
    assert hooked_macs(model, x, depthwise_as_dense=True) / 1e9 == pytest.approx(5.549, rel=0.01)
    dense = sum(
        operator.macs * (operator.weight_shape[0] if operator.weight_shape[1] == 1 else 1)
        for operator in operators_of(model, x)
    )
    assert dense / 1e9 == pytest.approx(5.549, rel=0.01)


@pytest.mark.parametrize(("bits", "ratio"), [(8, 16.0), (4, 64.0), (2, 256.0)])
def test_uniform_bits_through_the_controller(bits: int, ratio: float) -> None:
    """Equation (16): BOPs fall with the product of weight and activation bits, in every layer."""
    quantization = {"weights": {"bits": bits}, "activations": {"bits": bits, "input_bits": bits}}
    config = {"compression": {"algorithm": "djpq", "pruning": {"enabled": False}, "quantization": quantization}}
    controller, _ = create_compressed_model(VGG7(width=8), config, init_data=[images(8, 32)])
    for statistics in (controller.statistics().djpq, (controller.freeze(), controller.statistics().djpq)[1]):
        assert {(layer.weight_bits, layer.activation_bits) for layer in statistics.layers} == {(bits, bits)}
        assert 1 / statistics.bops_ratio == pytest.approx(ratio)
        assert statistics.macs_ratio == 1
        assert statistics.weight_size_ratio == pytest.approx(bits / 32)


def test_first_layer_has_8_bit_inputs_by_default() -> None:
    quantization = {"weights": {"bits": 4}, "activations": {"bits": 4}}
    config = {"compression": {"algorithm": "djpq", "pruning": {"enabled": False}, "quantization": quantization}}
    controller, _ = create_compressed_model(VGG7(width=8), config, init_data=[images(8, 32)])
    assert [layer.activation_bits for layer in controller.statistics().djpq.layers] == [8, *7 * [4]]


class Every(nn.Module):
    """Each kind of layer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.same = nn.Conv2d(6, 6, 3, padding="same", dilation=2)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2)
        self.transposed = nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2)
        self.conv1d = nn.Conv1d(4, 5, 3)
        self.conv3d = nn.Conv3d(1, 2, 2)
        self.linear = nn.Linear(5, 7, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.transposed(self.grouped(self.same(self.conv(x))))
        return self.linear(self.conv1d(x.flatten(2)).transpose(1, 2)), self.conv3d(x.unsqueeze(1))


def test_macs_of_each_kind() -> None:
    found = {operator.layer: operator for operator in operators_of(Every(), images(3))}
    # 8x8 -> 4x4 -> 4x4 -> 2x2 -> 5x5, flattened to 25 -> 23
    assert {name: operator.macs for name, operator in found.items()} == {
        "conv": 6 * 3 * 9 * 16,
        "same": 6 * 6 * 9 * 16,
        "grouped": 8 * 3 * 9 * 4,
        "transposed": 8 * 2 * 9 * 4,
        "conv1d": 5 * 4 * 3 * 23,
        "conv3d": 2 * 8 * 3 * 4 * 4,
        "linear": 5 * 7 * 23,
    }
    assert found["same"].kind == "conv2d"
    assert found["linear"].kind == "linear"


def test_weight_used_twice_counts_twice() -> None:
    operators = operators_of(NETWORKS["shared_weight"](), images())
    assert [operator.layer for operator in operators] == ["stem", "shared", "shared#2", "fc"]
    assert operators[1].macs == operators[2].macs == 6 * 6 * 9 * 64


@pytest.mark.parametrize("name", NETWORKS)
def test_hard_shares_give_the_exact_count(name: str) -> None:
    """With whole groups kept or gone."""
    graph = capture(NETWORKS[name]().eval(), (images(),))
    analysis = analyse_channels(graph)
    cost = CostModel(find_mac_operators(graph), analysis)
    generator = np.random.default_rng(0)
    for _ in range(8):
        shares = generator.integers(0, 2, len(cost.group_names))
        keep = np.array([bool(shares[cost.group_names.index(owner)]) for owner in analysis.channel_group])
        exact = np.array(cost.exact_macs(keep), dtype=float)
        soft = cost.soft_macs(torch.from_numpy(shares).float())
        np.testing.assert_allclose(soft.numpy(), exact, rtol=1e-6, atol=1e-3)
        bits = torch.from_numpy(generator.uniform(2, 8, (2, len(exact)))).float()
        bops = cost.soft_bops(torch.from_numpy(shares).float(), *bits)
        np.testing.assert_allclose(bops.numpy(), exact * bits.prod(0).numpy(), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("name", NETWORKS)
def test_shares_of_channels_give_the_exact_count(name: str) -> None:
    """With some channels of each group gone, equation (15)."""
    network = insert_into(NETWORKS[name](), images(), **PRUNING_ONLY)
    random_gates(network.gates, 0, nearly_all=False)
    shares = torch.tensor([float(gate.open.float().mean()) for gate in network.gates.values()])
    exact = network.cost.exact_macs(kept_channels(network.analysis, network.gates))
    np.testing.assert_allclose(network.cost.soft_macs(shares).numpy(), exact, rtol=1e-5)


@pytest.mark.parametrize("name", ["depthwise_separable", "concat_split", "shared_weight", "plain"])
def test_gradients_by_finite_differences(name: str) -> None:
    network = insert_into(NETWORKS[name](), images(), **PRUNING_ONLY)
    cost = network.cost
    groups, layers = len(cost.group_names), len(cost.operators)
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(groups, generator=generator)
    weight_bits, activation_bits = (torch.rand(layers, generator=generator) * 6 + 2 for _ in range(2))
    # float32 throughout: the function is a low polynomial, so that wide central differences are exact.
    values = [shares, weight_bits, activation_bits]
    for value in values:
        value.requires_grad_()
    cost.soft_bops(shares, weight_bits, activation_bits).sum().backward()
    for value in values:
        assert value.grad is not None
        for index in range(value.numel()):
            sides = []
            for sign in (1, -1):
                moved = [v.detach().clone() for v in values]
                moved[[v is value for v in values].index(True)][index] += sign * 0.25
                sides.append(float(cost.soft_bops(*moved).double().sum()))
            assert float(value.grad[index]) == pytest.approx((sides[0] - sides[1]) / 0.5, rel=1e-3, abs=1.0)


def test_group_shares() -> None:
    """What a group takes part in, per layer: its share of the rows plus its share of the columns."""
    network = insert_into(NETWORKS["concat"](), images(), **PRUNING_ONLY)
    assert network.cost.group_names == ("left", "right", "join")
    assert [operator.layer for operator in network.operators] == ["left", "right", "join", "fc"]
    shares = network.cost.group_shares(torch.tensor([10.0, 20.0, 60.0, 10.0]))
    torch.testing.assert_close(shares, torch.tensor([0.10 + 0.6 * 0.4, 0.20 + 0.6 * 0.6, 0.6 + 0.1]))
    # every layer has prunable rows or columns; those of `join` have both
    assert float(shares.sum()) == pytest.approx(1 + 0.6)
