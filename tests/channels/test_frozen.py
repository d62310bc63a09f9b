# SPDX-License-Identifier: Apache-2.0
"""Channels that must stay, with the reason that users read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.channels import ChannelAnalysis, analyse_channels
from djpq_nncf.passes import kept_channels, remove
from tests.helpers import PRUNING_ONLY, images, insert_into, random_gates


class Apply(nn.Module):
    """A function as a module, so that it has a path."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Between(nn.Module):
    """Two convolutions with something between them, and a third that reads the first directly."""

    def __init__(self, between: nn.Module, outputs: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = between
        self.second = nn.Conv2d(outputs, 6, 1)
        self.direct = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return self.second(self.mix(x)), self.direct(x)


def reasons(analysis: ChannelAnalysis) -> dict[str, str]:
    return {entry.layer: entry.reason for entry in analysis.frozen}


def analyse(model: nn.Module) -> ChannelAnalysis:
    return analyse_channels(capture(model.eval(), (images(),)))


class FilledBuffer(nn.Module):
    """Adds what was computed from no channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cumsum(torch.ones(8, 1, 1), 0)


FREEZING: dict[str, tuple[nn.Module, int, str]] = {
    "cumsum": (Apply(lambda x: torch.cumsum(x, 1)), 8, "aten::cumsum at 'mix' has no channel rule"),
    "softmax": (nn.Softmax(dim=1), 8, "aten::softmax.int at 'mix' has no channel rule"),
    "tearing view": (
        Apply(lambda x: x.view(-1, 4, 2, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)),
        8,
        "aten::view at 'mix' tears the channel dimension apart",
    ),
    "selection": (Apply(lambda x: x[:, 3].unsqueeze(1)), 1, "aten::select.int at 'mix' selects single channels"),
    "strided selection": (
        Apply(lambda x: x[:, ::2]),
        4,
        "aten::slice.Tensor at 'mix' selects every n-th channel",
    ),
    "reduction": (
        Apply(lambda x: x.mean(1, keepdim=True)),
        1,
        "aten::mean.dim at 'mix' reduces over channels",
    ),
    "pooled as a position": (
        Apply(lambda x: nn.functional.max_pool2d(x.permute(0, 2, 3, 1), 2)),
        8,
        "aten::max_pool2d at 'mix' pools over channels",
    ),
    "convolved as a position": (
        Apply(lambda x: x.permute(0, 2, 3, 1)),
        8,
        "aten::conv2d at 'second' takes it for positions or samples",
    ),
    "computed operand": (FilledBuffer(), 8, "aten::add.Tensor at 'mix' combines it with a tensor that cannot shrink"),
    "computed weight": (
        Apply(lambda x: nn.functional.linear(x, torch.ones(8, 8).cumsum(0))),
        8,
        "aten::linear at 'mix' has a computed weight",
    ),
}


@pytest.mark.parametrize("case", FREEZING)
def test_reason_names_operator_and_module(case: str) -> None:
    between, outputs, reason = FREEZING[case]
    analysis = analyse(Between(between, outputs))
    assert reasons(analysis)["first"] == reason
    assert not analysis.groups
    (entry,) = (entry for entry in analysis.frozen if entry.layer == "first")
    assert entry.count == 8


class Unread(nn.Module):
    """Half of the channels end nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[:, :4])


def test_channels_that_no_weight_reads_stay() -> None:
    analysis = analyse(Unread())
    assert {name: group.size for name, group in analysis.groups.items()} == {"first": 4}
    assert reasons(analysis)["first"] == "no layer with a weight reads it, so no gate can act on it"


def test_single_channel_stays() -> None:
    analysis = analyse(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)))
    assert list(analysis.groups) == ["1"]
    assert reasons(analysis)["0"] == "'0' has a single channel"


class ReadAsItIs(nn.Module):
    """A weight that something else reads before its layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penalty = self.first.weight.abs().sum()
        return self.second(self.first(x)), penalty


def test_weight_that_something_else_reads_stays() -> None:
    analysis = analyse(ReadAsItIs())
    assert not analysis.groups
    assert "reads 'first.weight' as it is" in reasons(analysis)["first"]


class Moved(nn.Module):
    """``move`` stands between a convolution and what reads it."""

    def __init__(self, move: nn.Module, reader: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.move = move
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.move(torch.sigmoid(self.first(x))))


class TwoReaders(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, 5, 1)

    def forward(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        return [self.first(part) for part in parts]


class OwnReaders(nn.Module):
    def __init__(self, *inputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(size, 5, 1) for size in inputs)

    def forward(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        return [conv(part) for conv, part in zip(self.convs, parts, strict=True)]


def _pooled(x: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(x, 1)


MOVES: dict[str, tuple[Callable[..., object], nn.Module, int]] = {
    "squeeze all": (lambda x: _pooled(x).squeeze(), nn.Linear(8, 5), 8),
    "squeeze two": (lambda x: _pooled(x).squeeze(3).squeeze(2).squeeze(1), nn.Linear(8, 5), 8),
    "squeeze dims": (lambda x: _pooled(x).squeeze((1, 2, 3)), nn.Linear(8, 5), 8),
    "unflatten": (lambda x: x.unflatten(1, (8, 1)).flatten(1, 2), nn.Conv2d(8, 5, 1), 8),
    "unflatten from the end": (lambda x: x.unflatten(-3, (1, 8)).squeeze(1), nn.Conv2d(8, 5, 1), 8),
    "chunk": (lambda x: x.chunk(2, 1), OwnReaders(4, 4), 8),
    "chunk from the end": (lambda x: x.chunk(3, -3), OwnReaders(3, 3, 2), 8),
    "chunk into one reader": (lambda x: x.chunk(2, 1), TwoReaders(4), 4),
    "unequal split": (lambda x: x.split([2, 4, 2], 1), OwnReaders(2, 4, 2), 8),
    "slices": (lambda x: (x[:, :3], x[:, 3:-2], x[:, -2:]), OwnReaders(3, 3, 2), 8),
    "expand": (lambda x: _pooled(x).expand(-1, 8, 4, 4), nn.Conv2d(8, 5, 1), 8),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), nn.Conv2d(16, 5, 1), 8),
    "flatten by view": (lambda x: x.view(x.shape[0], 8 * 64), nn.Linear(512, 5), 8),
    "view with a free size": (lambda x: x.view(-1, 8, 64).transpose(1, 2), nn.Linear(8, 5), 8),
    "permuted twice": (lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2), nn.Conv2d(8, 5, 1), 8),
    "channels last linear": (lambda x: x.permute(0, 2, 3, 1), nn.Linear(8, 5), 8),
}


@pytest.mark.parametrize("nearly_all", [False, True], ids=["some", "nearly all"])
@pytest.mark.parametrize("move", MOVES)
def test_moved_channels_can_be_removed(move: str, nearly_all: bool) -> None:
    """Constants in the graph follow, also where one channel remains."""
    function, reader, removable = MOVES[move]
    x = images(3, dtype=torch.float64)
    network = insert_into(Moved(Apply(function), reader).double(), x, **PRUNING_ONLY)  # type: ignore[arg-type]
    assert network.analysis.channel_count == removable
    random_gates(network.gates, 1, nearly_all=nearly_all)
    stripped = remove(network.model, network.analysis, kept_channels(network.analysis, network.gates))
    with torch.no_grad():
        torch.testing.assert_close(stripped(x), network.model.eval()(x))
        torch.testing.assert_close(stripped(x[:2]), network.model(x[:2]))
