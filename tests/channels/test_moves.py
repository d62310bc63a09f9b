# SPDX-License-Identifier: Apache-2.0
"""What may stand between a layer and those that read it: removal equals gating, and constants follow."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.channels.cases import Apply
from tests.helpers import (
    PRUNING_ONLY,
    assert_same_outputs,
    images,
    insert_into,
    open_gates,
    other_batch,
    random_gates,
    strip,
)


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


class _OverChannels(nn.Module):
    """A convolution that takes channels for columns, and a layer that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 3, padding=1)
        self.mix = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.conv(x)).mean((1, 2))


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
    # what relates channels to each other does so with those that remain
    "softmax": (lambda x: x.softmax(1), nn.Conv2d(8, 5, 1), 8),
    "logarithm of a softmax": (lambda x: x.softmax(1).log(), nn.Conv2d(8, 5, 1), 8),
    "softmax over heads": (lambda x: x.unflatten(1, (2, 4)).softmax(1).flatten(1, 2), nn.Conv2d(8, 5, 1), 6),
    "mean": (lambda x: x - x.mean(1, keepdim=True), nn.Conv2d(8, 5, 1), 8),
    "mean of a part": (lambda x: x * x[:, :2].mean(1, keepdim=True), nn.Conv2d(8, 5, 1), 8),
    "variance": (lambda x: x / (x.var(1, keepdim=True, correction=0) + 0.1), nn.Conv2d(8, 5, 1), 8),
    "greatest": (lambda x: x - x.amax(1, keepdim=True), nn.Conv2d(8, 5, 1), 8),
    "norm": (lambda x: F.normalize(x, dim=1), nn.Conv2d(8, 5, 1), 8),
    "convolved as a position": (lambda x: x.permute(0, 2, 3, 1), _OverChannels(), 8),
    # other orders
    "torn and put together": (lambda x: x.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2), nn.Conv2d(8, 5, 1), 8),
    "strided": (lambda x: (x[:, ::2], x[:, 1::2]), OwnReaders(4, 4), 8),
    "every third": (lambda x: (x[:, ::3], x), OwnReaders(3, 8), 8),
    "unbound": (lambda x: torch.stack([y * 2 for y in x.unflatten(1, (2, 4)).unbind(1)], 2).flatten(1, 2),
                nn.Conv2d(8, 5, 1), 4),
    "flipped": (lambda x: x.flip(1), nn.Conv2d(8, 5, 1), 8),
    "rolled": (lambda x: x.roll(3, 1), nn.Conv2d(8, 5, 1), 8),
    "repeated one by one": (lambda x: x.repeat_interleave(3, 1), nn.Conv2d(24, 5, 1), 8),
    "padded": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 1), value=0.5), nn.Conv2d(11, 5, 1), 8),
    "part replaced": (lambda x: x.slice_scatter(x[:, 5:] * 2, 1, 0, 3), nn.Conv2d(8, 5, 1), 5),
    "parts pooled": (lambda x: torch.cat([F.avg_pool2d(y, 3, 1, 1) for y in x.split([2, 6], 1)], 1),
                     nn.Conv2d(8, 5, 1), 8),
}  # fmt: skip
"""Move, reader, number of channels that can go."""


@pytest.mark.parametrize("move", MOVES)
def test_moved_channels_can_be_removed(move: str) -> None:
    """Constants in the graph follow, also where one channel remains."""
    function, reader, removable = MOVES[move]
    x = images(3, dtype=torch.float64)
    model = Moved(Apply(function), reader).double()
    network = insert_into(model, x, **PRUNING_ONLY)
    assert network.analysis.channel_count == removable
    open_gates(network.gates)
    assert_same_outputs(model, network.model, x)
    for seed in range(6):
        random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
        stripped = strip(network)
        for inputs in ((x,), other_batch((x,), 2)):
            assert_same_outputs(network.model, stripped, *inputs)
