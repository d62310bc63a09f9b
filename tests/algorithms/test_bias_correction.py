# SPDX-License-Identifier: Apache-2.0
"""Means that quantization shifts, and that biases take back."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.algorithms import create_compressed_model
from djpq_nncf.algorithms._bias_correction import correct_biases
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.errors import DataError
from djpq_nncf.nn import LearnedQuantizer
from tests.helpers import images, randomize


class Chain(nn.Module):
    """One layer of each kind that has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(self.conv(x).relu()).relu().mean((2, 3)))


class Twice(nn.Module):
    """One layer on two values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv(-x.relu())


class Norms(nn.Module):
    """BatchNorm behind a layer with a bias, behind one without, and behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.bn3 = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn3(x + self.bn2(self.conv2(x)))


class Keywords(nn.Module):
    """Two inputs by keyword, and a linear layer on a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"out": self.fc(x * scale)}


def compress(model: nn.Module, data: list[Any]) -> tuple[DJPQController, list[LearnedQuantizer]]:
    """Few bits, so that means shift a lot."""
    bits = {"weights": {"bits": 3}, "activations": {"bits": 4}}
    config = {"compression": {"algorithm": "djpq", "pruning": {"enabled": False}, "quantization": bits}}
    controller, _ = create_compressed_model(model, config, init_data=data)
    assert isinstance(controller, DJPQController)
    controller.model.eval()
    return controller, [module for module in controller.model.modules() if isinstance(module, LearnedQuantizer)]


def quantized(controller: DJPQController, name: str, x: Tensor) -> Tensor:
    """Through the quantizer of an activation, or of the layer's weight of that name."""
    kind = "weight" if name.endswith("weight") else "activation"
    quantizer: nn.Module = controller.model.get_submodule(f"compression.{kind}_quantizers.{name}")
    value: Tensor = quantizer(x)
    return value


@torch.no_grad()
def test_each_bias_takes_the_shift_that_is_left_by_those_before_it() -> None:
    """Layer by layer, by hand."""
    model, x = Chain().eval(), images(8)
    controller, quantizers = compress(model, [x])
    conv, up, fc = (
        quantized(controller, f"{name}_weight", model.get_parameter(f"{name}.weight")) for name in ("conv", "up", "fc")
    )
    correct_biases(controller.model, quantizers, [x], 8)
    corrected = controller.model.get_parameter

    exact, value = model.conv(x), F.conv2d(quantized(controller, "x", x), conv, model.conv.bias)
    shift = (value - exact).mean((0, 2, 3))
    assert shift.abs().max() > 1e-3
    torch.testing.assert_close(corrected("conv.bias"), model.conv.bias - shift)
    exact, value = exact.relu(), (value - shift[:, None, None]).relu()
    exact = model.up(exact)
    value = F.conv_transpose2d(quantized(controller, "relu", value), up, model.up.bias, stride=2)
    shift = (value - exact).mean((0, 2, 3))
    torch.testing.assert_close(corrected("up.bias"), model.up.bias - shift)
    exact, value = exact.relu().mean((2, 3)), quantized(controller, "relu_1", (value - shift[:, None, None]).relu())
    value = value.mean((2, 3))
    exact, value = model.fc(exact), F.linear(quantized(controller, "mean", value), fc, model.fc.bias)
    torch.testing.assert_close(corrected("fc.bias"), model.fc.bias - (value - exact).mean(0))


@torch.no_grad()
def test_a_shared_bias_takes_the_mean_shift() -> None:
    model, x = Twice().eval(), images(8)
    controller, quantizers = compress(model, [x])
    weight = quantized(controller, "conv_weight", model.conv.weight)
    values = quantized(controller, "x", x), quantized(controller, "neg", -x.relu())
    correct_biases(controller.model, quantizers, [x], 8)
    shifts = [
        (F.conv2d(value, weight) - F.conv2d(exact, model.conv.weight)).mean((0, 2, 3))
        for value, exact in zip(values, (x, -x.relu()), strict=True)
    ]
    assert model.conv.bias is not None
    expected = model.conv.bias - (shifts[0] + shifts[1]) / 2
    torch.testing.assert_close(controller.model.get_parameter("conv.bias"), expected)


@torch.no_grad()
def test_batchnorm_takes_the_shift_into_its_mean() -> None:
    """Then the mean of its output is that without quantization; nothing else changes."""
    model, x = randomize(Norms()).eval(), images(8)
    controller, quantizers = compress(model, [x])
    before = copy.deepcopy(controller.model.state_dict())
    outputs: dict[str, Tensor] = {}
    for network in (model, controller.model):
        for name in ("bn1", "bn2", "bn3"):
            key = f"{name}, {type(network).__name__}"
            network.get_submodule(name).register_forward_hook(
                lambda module, args, output, key=key: outputs.update({key: output.mean((0, 2, 3))})
            )
    correct_biases(controller.model, quantizers, [x], 8)
    model(x)
    controller.model(x)
    for name in ("bn1", "bn2", "bn3"):
        torch.testing.assert_close(outputs[f"{name}, {type(controller.model).__name__}"], outputs[f"{name}, Norms"])
    changed = {key for key, value in controller.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"bn1.running_mean", "bn2.running_mean", "bn3.running_mean"}


@torch.no_grad()
def test_every_sample_counts_alike() -> None:
    """Whatever batch it is in, and as far as samples are asked for."""
    x = images(9)
    model = Chain()
    whole, quantizers = compress(model, [x])
    correct_biases(whole.model, quantizers, [x[:7]], 7)
    parts, quantizers = compress(model, [x])
    correct_biases(parts.model, quantizers, [x[:2], x[2:7], x[7:]], 7)
    torch.testing.assert_close(parts.model.get_parameter("conv.bias"), whole.model.get_parameter("conv.bias"))


@torch.no_grad()
def test_inputs_by_keyword_and_sequences() -> None:
    model = Keywords().eval()
    batch = {"x": images(4).flatten(2).mT.contiguous(), "scale": torch.full((4, 1, 1), 2.0)}
    controller, quantizers = compress(model, [batch])
    expected = model(**batch)["out"].mean((0, 1))
    correct_biases(controller.model, quantizers, [batch], 4)
    torch.testing.assert_close(controller.model(**batch)["out"].mean((0, 1)), expected)


def test_nothing_to_do() -> None:
    controller, quantizers = compress(Chain(), [images(8)])
    before = copy.deepcopy(controller.model.state_dict())
    correct_biases(controller.model, quantizers, [images(8)], 0)
    correct_biases(controller.model, [], [images(8)], 8)
    with pytest.raises(DataError, match="yields nothing"):
        correct_biases(controller.model, quantizers, [], 8)
    with pytest.raises(DataError, match="batch 1: input 0 holds NaN"):
        correct_biases(controller.model, quantizers, [images(4), torch.full_like(images(4), torch.nan)], 8)
    assert all(torch.equal(value, before[key]) for key, value in controller.model.state_dict().items())


def test_modes_stay() -> None:
    controller, quantizers = compress(randomize(Norms()), [images(8)])
    controller.model.train()
    correct_biases(controller.model, quantizers, [images(8)], 8)
    assert controller.model.training
    assert controller.model.get_submodule("bn1").training
    assert not any(quantizer.observer for quantizer in quantizers)
