# SPDX-License-Identifier: Apache-2.0
"""The saved file runs in INT8 throughout: no float layer, nothing between layers that NNCF's own graph has not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.export import export_model, verify_export
from tests.export.executed import ExecutedGraph, eight_bits, executed_graph, write_post_training
from tests.hardware import needs_vnni
from tests.helpers import randomize

SIZE = 33
"""Odd, so that windows of pooling reach over the edge."""


def _conv(inputs: int, outputs: int, kernel: int = 3, activation: nn.Module | None = None, **options: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation or nn.Identity())


class Residual(nn.Module):
    """Shortcuts with and without a convolution, on either side of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = _conv(3, 16, activation=nn.ReLU()), _conv(16, 16, activation=nn.ReLU())
        self.second = _conv(16, 16)
        self.wide, self.last = _conv(16, 32, activation=nn.ReLU(), stride=2), _conv(32, 32)
        self.left, self.right = _conv(16, 32, 1, stride=2), _conv(32, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.second(self.first(x)))
        x = F.relu(self.left(x) + self.last(self.wide(x)))
        x = F.relu(self.last(x) + self.right(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SqueezeExcite(nn.Module):
    """A block of MobileNetV3: hardswish, depthwise convolution, squeeze-and-excitation, linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = _conv(3, 16, activation=nn.Hardswish()), _conv(16, 32, 1, nn.Hardswish())
        self.depthwise = _conv(32, 32, activation=nn.Hardswish(), groups=32)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.project, self.fc = _conv(32, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.fc((x + self.project(y)).mean((2, 3)))


class Inception(nn.Module):
    """Branches behind max pooling and average pooling; pooling that rounds the number of windows up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, activation=nn.ReLU(), stride=2)
        self.one, self.pooled, self.averaged = (_conv(16, 8, 1, nn.ReLU()) for _ in range(3))
        self.two = nn.Sequential(_conv(16, 8, 1, nn.ReLU()), _conv(8, 16, activation=nn.ReLU()))
        self.fc = nn.Linear(160, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2, 2, ceil_mode=True)
        pooled, averaged = F.max_pool2d(x, 3, 1, 1, ceil_mode=True), F.avg_pool2d(x, 3, 1, 1)
        x = torch.cat([self.one(x), self.two(x), self.pooled(pooled), self.averaged(averaged)], 1)
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


class LinearBottlenecks(nn.Module):
    """Blocks of MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = _conv(3, 8, activation=nn.ReLU6(), stride=2), _conv(8, 8, 1)
        blocks = [self._block() for _ in range(2)]
        self.blocks, self.fc = nn.ModuleList(blocks), nn.Linear(8, 10)

    @staticmethod
    def _block() -> nn.Module:
        return nn.Sequential(
            _conv(8, 24, 1, nn.ReLU6()), _conv(24, 24, activation=nn.ReLU6(), groups=24), _conv(24, 8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


class Upsampling(nn.Module):
    """Down and up again: transposed convolution, interpolation, sum and concatenation with what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.down = _conv(3, 16, activation=nn.SiLU()), _conv(16, 32, activation=nn.ReLU(), stride=3)
        self.up, self.norm = nn.ConvTranspose2d(32, 16, 3, stride=3, bias=False), nn.BatchNorm2d(16)
        self.skip, self.head = _conv(48, 16, activation=nn.ReLU()), nn.Conv2d(16, 5, 1)
        self.small, self.lateral, self.near = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        down = self.down(before)
        up = F.relu(self.norm(self.up(down)))
        near = self.near(self.lateral(before) + F.interpolate(self.small(down), scale_factor=3.0))
        return self.head(self.skip(torch.cat([before, up, near], 1)))


class Activations(nn.Sequential):
    """Activations that may be negative; the slope of one is learned."""

    def __init__(self) -> None:
        kinds = [nn.PReLU(8), nn.LeakyReLU(0.1), nn.GELU(), nn.ELU(), nn.SiLU()]
        super().__init__(_conv(3, 8), *(_conv(8, 8, activation=kind) for kind in kinds), nn.Conv2d(8, 4, 3))


class LayerNorm(nn.Module):
    """A block of ConvNeXt: depthwise convolution, LayerNorm over channels that come last, linear layers, a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale, self.fc = nn.Parameter(torch.rand(16, 1, 1)), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)
        return self.fc(F.adaptive_avg_pool2d(x + y * self.scale, 1).flatten(1))


@dataclass(frozen=True)
class Case:
    """``elementwise``: products, and sums outside of convolutions. ``quantizers``: besides that of the input."""

    make: Callable[[], nn.Module]
    elementwise: int = 0
    quantizers: int = 0


CASES = {
    "residual": Case(Residual),
    "squeeze_excite": Case(SqueezeExcite, elementwise=1),
    "inception": Case(Inception),
    "linear_bottlenecks": Case(LinearBottlenecks),
    "upsampling": Case(Upsampling),
    "activations": Case(Activations),
    "layer_norm": Case(LayerNorm, elementwise=5, quantizers=1),
}


# OpenVINO transposes convolutions in INT8 with the kernels of VNNI alone
_PARAMS = [pytest.param(name, marks=needs_vnni) if name == "upsampling" else name for name in CASES]


@pytest.fixture(scope="module", params=_PARAMS)
def graphs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, ExecutedGraph, ExecutedGraph]:
    """The executed graphs of ours and of NNCF's, the same channels in both."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model, image = randomize(case.make()).eval(), torch.randn(4, 3, SIZE, SIZE)
    stripped = eight_bits(model, image)
    export_model(stripped, folder / "ours.xml")
    found = verify_export(folder / "ours.xml", stripped, image)
    assert found.int8_mac_share == 1
    assert found.max_relative_difference < 0.01
    write_post_training(model, [image], folder / "nncf.xml")
    return case, executed_graph(folder / "ours.xml"), executed_graph(folder / "nncf.xml")


def test_every_layer_runs_in_int8(graphs: tuple[Case, ExecutedGraph, ExecutedGraph]) -> None:
    _, ours, _ = graphs
    assert ours.layers
    assert [layer for layer in ours.layers if not layer.is_int8] == []


def test_no_more_in_float_than_nncf(graphs: tuple[Case, ExecutedGraph, ExecutedGraph]) -> None:
    case, ours, nncf = graphs
    assert len(ours.floating) <= len(nncf.floating), [node.kind for node in ours.floating]
    assert len(ours.conversions) <= len(nncf.conversions), ours.conversions
    assert len([node for node in ours.of("FakeQuantize") if not node.reads_input]) == case.quantizers


def test_gates_and_batchnorm_are_part_of_the_layers(graphs: tuple[Case, ExecutedGraph, ExecutedGraph]) -> None:
    case, ours, _ = graphs
    assert len(ours.of("Eltwise")) == case.elementwise
    assert not ours.of("Subgraph")


def test_epsilon_is_added_to_the_variance_of_numbers(tmp_path: Path) -> None:
    """Small numbers have large codes, of which epsilon is no part at all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 3))
    for parameter in model[0].parameters():
        parameter.data *= 0.01
    image = torch.randn(4, 3, SIZE, SIZE)
    stripped = eight_bits(model, image)
    export_model(stripped, tmp_path / "net.xml")
    found = verify_export(tmp_path / "net.xml", stripped, image)
    assert found.max_relative_difference < 0.01
    assert found.int8_mac_share == 1


class Pools(nn.Module):
    """Adaptive pooling over all, over equal and over unequal windows, and none; max pooling over the edge."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        averages = [F.adaptive_avg_pool2d(x, size) for size in (1, (3, 2), 4, (6, 8))]
        windows = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 3, 1), (4, 3, 2), ((3, 2), (2, 3), (1, 0)), (5, 4, 0)]
        return *averages, *(F.max_pool2d(x, *window, ceil_mode=True) for window in windows)


def test_pools_compute_the_same(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 6, 8) - 5
    network = capture(Pools(), (x,))
    export_model(network, tmp_path / "net.xml")
    assert verify_export(tmp_path / "net.xml", network, x).max_abs_difference < 1e-5
