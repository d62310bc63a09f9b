# SPDX-License-Identifier: Apache-2.0
"""Small networks, and a stand-in for the passes that turn them into stripped, quantized models."""

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.capture import capture
from djpq_nncf.nn._frozen import (
    FrozenActivationQuantizer,
    FrozenWeightQuantizer,
    signed_levels,
    unsigned_levels,
)
from tests.hardware import WEIGHT_BITS

_aten = torch.ops.aten
_LAYERS = {
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.linear.default,
}


class Plain(nn.Module):
    """Conv with and without BatchNorm, strides, max pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding="same"),
            nn.ReLU(),
            nn.Conv2d(24, 8, 1, stride=2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class Residual(nn.Module):
    """Identity and projection shortcuts, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32))
        self.skip = nn.Sequential(nn.Conv2d(16, 32, 1, stride=2, bias=False), nn.BatchNorm2d(32))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.conv(x)).relu()
        x = (self.wide(x) + self.skip(x)).relu()
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """A residual branch of two convolutions between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.second(self.first(x).relu()) + x).relu())


class Inverted(nn.Module):
    """A MobileNet block: ReLU6, depthwise convolution, linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.project(self.depthwise(self.expand(x))).mean((2, 3)))


class Dense(nn.Module):
    """A DenseNet block: BatchNorm and ReLU before the convolution, concatenation after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * index) for index in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(16 + 8 * index, 8, 3, padding=1, bias=False) for index in range(3))
        self.fc = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.fc(x.mean((2, 3)))


class Temporal(nn.Module):
    """conv1d, sigmoid, a linear layer over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(3, 16, 3, padding=1, bias=False), nn.BatchNorm1d(16), nn.ReLU())
        self.mix = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.conv(x).transpose(1, 2)).sigmoid()


NETS: dict[str, type[nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "inverted": Inverted,
    "dense": Dense,
}


def make_exact(model: nn.Module) -> nn.Module:
    """Gives BatchNorm and biases short binary fractions: float arithmetic is then exact, in any order.

    Together with steps that are powers of two nothing but a wrong graph can make two runtimes differ, and
    values on the border between two codes are frequent.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eps = 2**-10
            assert module.running_mean is not None and module.running_var is not None
            module.running_var.fill_(1 - 2**-10)
            module.running_mean.copy_(_fractions(module.running_mean))
            module.bias.data = _fractions(module.bias)
            module.weight.data = torch.tensor([0.5, -0.5, 1.0, 1.0, 0.25]).repeat(999)[: module.num_features]
        elif getattr(module, "bias", None) is not None and isinstance(module.bias, Tensor):
            module.bias.data = _fractions(module.bias)
    return model


def randomize(model: nn.Module) -> nn.Module:
    """BatchNorm as after training, with negative scales and one that is zero."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.weight.data[::5] *= -1
            module.weight.data[3] = 0
    return model


def _fractions(like: Tensor) -> Tensor:
    return (torch.randn(like.shape) * 4).round() / 16


def strip(
    model: nn.Module,
    args: tuple[Tensor, ...],
    *,
    weight_bits: Iterable[int] = range(2, 9),
    activation_bits: Iterable[int] = range(2, 9),
    exact: bool = False,
    per_channel: bool = True,
    seed: int = 0,
) -> fx.GraphModule:
    """Captures ``model`` and quantizes its layers and additions with a bit-width drawn for each tensor.

    Weights have no more bits than this CPU computes with exactly.
    """
    generator = random.Random(seed)
    weight_choices = [min(bits, WEIGHT_BITS) for bits in weight_bits]
    activation_choices = list(activation_bits)
    captured = capture(model.eval(), args)
    values = _Recorder(captured).record(args)
    quantized: dict[fx.Node, fx.Node] = {}
    graph = captured.graph
    for node in list(graph.nodes):
        sources: list[Any] = []
        if node.target in _LAYERS:
            _quantize_weight(captured, node, generator.choice(weight_choices), per_channel, exact)
            sources = [node.args[0]]
        elif node.target is _aten.add.Tensor:
            sources = [source for source in node.args if isinstance(source, fx.Node)]
        for source in sources:
            if source not in quantized:
                name = f"quantizer_{len(quantized)}"
                bits = generator.choice(activation_choices)
                captured.add_submodule(name, activation_quantizer(values[source], bits, exact))
                with graph.inserting_after(source):
                    quantized[source] = graph.call_module(name, (source,))
                quantized[source].meta = dict(source.meta)
            node.replace_input_with(source, quantized[source])
    graph.lint()
    captured.recompile()
    return captured.eval()


def activation_quantizer(value: Tensor, bits: int, exact: bool) -> FrozenActivationQuantizer:
    """Asymmetric where negative values are much smaller than positive ones."""
    lowest, highest = _codes(float(value.min()), float(value.max()), bits)
    step = 0.7 * max(value.max() / highest, value.min() / (lowest or -1))
    return FrozenActivationQuantizer(_power_of_two(step) if exact else step, lowest, highest)


def _codes(smallest: float, greatest: float, bits: int) -> tuple[int, int]:
    if smallest >= 0:
        return 0, unsigned_levels(bits)
    if -smallest > 0.5 * greatest:
        return -signed_levels(bits) - 1, signed_levels(bits)
    below = 2 * round(-smallest / (greatest - smallest) * unsigned_levels(bits) / 2)
    return -below, unsigned_levels(bits) - below


def move_quantizer(model: fx.GraphModule, quantizer: str, producer: str) -> None:
    """Moves a quantizer up to right behind the node ``producer``."""
    nodes = {node.name: node for node in model.graph.nodes}
    old, source = nodes[quantizer], nodes[producer]
    old.replace_all_uses_with(old.args[0])
    with model.graph.inserting_after(source):
        moved = model.graph.call_module(str(old.target), (source,))
    moved.meta = dict(source.meta)
    source.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)
    model.graph.erase_node(old)
    model.recompile()


def _quantize_weight(model: fx.GraphModule, node: fx.Node, bits: int, per_channel: bool, exact: bool) -> None:
    source = node.args[1]
    assert isinstance(source, fx.Node)
    weight = model.get_parameter(str(source.target)).detach()
    peak = weight.flatten(1).abs().amax(1) if per_channel else weight.abs().max()
    step = peak / signed_levels(bits)
    name = str(source.target).replace(".", "_") + "_quantizer"
    model.add_submodule(name, FrozenWeightQuantizer(_power_of_two(step) if exact else step, bits))
    with model.graph.inserting_after(source):
        quantized = model.graph.call_module(name, (source,))
    quantized.meta = dict(source.meta)
    node.replace_input_with(source, quantized)


def _power_of_two(step: Tensor) -> Tensor:
    """Not above ``step``, so that values saturate."""
    return torch.exp2(torch.log2(step).floor())


class _Recorder(fx.Interpreter):
    def record(self, args: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
        self.values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            self.run(*args)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def expected_bits(model: fx.GraphModule) -> list[tuple[int, int]]:
    """Weight bits and activation bits per layer, in the order of the graph."""
    found: list[tuple[int, int]] = []
    for node in model.graph.nodes:
        if node.target in _LAYERS:
            weight = model.get_submodule(str(node.args[1].target))
            activation = model.get_submodule(str(node.args[0].target))
            assert isinstance(weight, FrozenWeightQuantizer)
            assert isinstance(activation, FrozenActivationQuantizer)
            found.append((weight.bits, activation.bits))
    return found


def expected_macs(model: fx.GraphModule) -> list[int]:
    """MACs per layer from the recorded shapes: output elements per sample times the weights of a channel."""
    found = []
    for node in model.graph.nodes:
        if node.target in _LAYERS:
            output, weight = node.meta["val"].shape, node.args[1].meta["val"].shape
            found.append(math.prod(output[1:]) * math.prod(weight[1:]))
    return found


def file_size(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.is_file())
