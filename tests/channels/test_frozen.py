# SPDX-License-Identifier: Apache-2.0
"""Channels that must stay, with the reason that users read."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.capture import DynamicDims, capture
from djpq_nncf.channels import ChannelAnalysis, analyse_channels
from tests.channels.cases import Apply
from tests.helpers import images


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


class Recurrent(nn.Module):
    """Channels as the features of a sequence of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).unflatten(2, (8, 8))


class StridedOverChannels(nn.Module):
    """Channels as the positions of a convolution that halves them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(64, 64, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))


def _as_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _pooled_with_positions(x: Tensor) -> Tensor:
    """Rows, and channels where columns were."""
    return F.max_pool2d(_as_last(x), (1, 2)).permute(0, 3, 1, 2)


def _depends_on_itself(x: Tensor) -> Tensor:
    """Channel i is added to the mean of 2 i and 2 i + 1."""
    return x[:, :4] + x.unflatten(1, (4, 2)).mean(2)


def _two_cycles(x: Tensor) -> Tensor:
    """Heads depend on channels, and widths too."""
    torn = x.unflatten(1, (4, 2))
    tangled = (x[:, :4] + torn.mean(2)).mean(1, keepdim=True) + (x[:, :2] + torn.mean(1)).mean(1, keepdim=True)
    return torch.tanh(x).unflatten(1, (2, 4)).flatten(1, 2) + tangled


PERMUTATION = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])

FREEZING: dict[str, tuple[nn.Module, int, str]] = {
    "cumsum": (Apply(lambda x: torch.cumsum(x, 1)), 8, "aten::cumsum at 'mix' has no channel rule"),
    "topk": (Apply(lambda x: x.topk(5, 1)[0]), 5, "aten::topk at 'mix' has no channel rule"),
    "sort": (Apply(lambda x: x.sort(1)[0]), 8, "aten::sort at 'mix' has no channel rule"),
    "fft": (Apply(lambda x: torch.fft.fft(x, dim=1).real), 8, "aten::fft_fft at 'mix' has no channel rule"),
    "distances": (
        Apply(lambda x: x * torch.cdist(x.flatten(2), x.flatten(2)).mean((1, 2)).reshape(-1, 1, 1, 1)),
        8,
        "aten::cdist at 'mix' has no channel rule",
    ),
    "lstm": (Recurrent(), 8, "aten::lstm.input at 'mix.lstm' has no channel rule"),
    "argmax": (
        Apply(lambda x: x * x.argmax(1, keepdim=True)), 8, "aten::argmax at 'mix' says which of them it is"
    ),
    "maximum with its position": (
        Apply(lambda x: x.max(1, keepdim=True)[0]), 1, "aten::max.dim at 'mix' says which of them it is"
    ),
    "lookup": (Apply(lambda x: x[:, PERMUTATION]), 8, "aten::index.Tensor at 'mix' looks up any of them"),
    "rolled with positions": (
        Apply(lambda x: x.roll((1, 1), (1, 2))), 8, "aten::roll at 'mix' reorders channels together with positions"
    ),
    "padded by their neighbours": (
        Apply(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), mode="replicate")),
        10,
        "aten::pad at 'mix' pads or crops the channel dimension",
    ),
    "cropped by padding": (
        Apply(lambda x: F.pad(x, (0, 0, 0, 0, -1, 0))), 7, "aten::pad at 'mix' pads or crops the channel dimension"
    ),
    "normalised over neighbours": (
        Apply(lambda x: F.local_response_norm(x, 3)), 8, "aten::avg_pool3d at 'mix' takes it for positions"
    ),
    "pooled as a position": (
        Apply(_pooled_with_positions), 4, "aten::max_pool2d at 'mix' takes it for positions"
    ),
    "resized as a position": (
        Apply(lambda x: F.interpolate(_as_last(x), size=(8, 6)).permute(0, 3, 1, 2)),
        6,
        "aten::upsample_nearest2d.vec at 'mix' takes it for positions",
    ),
    "strides over channels": (StridedOverChannels(), 4, "aten::conv1d at 'mix.conv' takes it for positions"),
    "every second replaced": (
        Apply(lambda x: x.slice_scatter(x[:, ::2], 1, 0, 8, 2)),
        8,
        "aten::slice_scatter at 'mix' replaces every n-th of them",
    ),
    "times a vector": (
        Apply(lambda x: (_as_last(x) @ torch.ones(8)).unsqueeze(1)), 1, "aten::matmul at 'mix' multiplies a vector"
    ),
    "computed operand": (FilledBuffer(), 8, "aten::add.Tensor at 'mix' combines it with a tensor that cannot shrink"),
    "computed weight": (
        Apply(lambda x: F.linear(x, torch.ones(8, 8).cumsum(0))), 8, "aten::linear at 'mix' has a computed weight"
    ),
    "depends on itself": (Apply(_depends_on_itself), 4, "its channels depend on themselves"),
    "depends on itself in two ways": (Apply(_two_cycles), 8, "its channels depend on themselves"),
}  # fmt: skip


@pytest.mark.parametrize("case", FREEZING)
def test_reason_names_operator_and_module(case: str) -> None:
    between, outputs, reason = FREEZING[case]
    analysis = analyse(Between(between, outputs))
    assert reasons(analysis)["first"] == reason
    assert not analysis.groups
    (entry,) = (entry for entry in analysis.frozen if entry.layer == "first")
    assert entry.count == 8


PARTLY: dict[str, tuple[nn.Module, int, int, str]] = {
    # what stands between, its outputs, how many of 8 channels stay, and why
    "one channel selected": (Apply(lambda x: x[:, 3].unsqueeze(1)), 1, 1, "selects a single channel"),
    "one channel cut out": (Apply(lambda x: x[:, 3:4] * 2), 1, 1, "selects a single channel"),
    "two channels looked up": (Apply(lambda x: x[:, :2][:, PERMUTATION[:2]]), 2, 2, "looks up any of them"),
    "half of them sorted": (
        Apply(lambda x: torch.cat([x[:, :4].sort(1)[0], x[:, 4:]], 1)),
        8,
        4,
        "has no channel rule",
    ),
}


@pytest.mark.parametrize("case", PARTLY)
def test_other_channels_of_the_layer_are_free(case: str) -> None:
    between, outputs, count, reason = PARTLY[case]
    analysis = analyse(Between(between, outputs))
    (entry,) = (entry for entry in analysis.frozen if entry.layer == "first")
    assert entry.count == count
    assert entry.reason.endswith(f"at 'mix' {reason}")
    assert sum(group.size for group in analysis.groups.values()) == 8 - count


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


class OneApart(nn.Module):
    """The last channel of the first layer goes where no other of it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.second, self.third = nn.Conv2d(3, 5, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = torch.cat([self.first(x), self.other(x)], 1).split([3, 7], 1)
        return self.second(left), self.third(right)


def test_channel_without_others_stays() -> None:
    analysis = analyse(OneApart())
    assert {name: group.size for name, group in analysis.groups.items()} == {"first": 3, "other": 6}
    assert reasons(analysis)["first"] == "no other channel is in the same places"


class MergedWithPositions(nn.Module):
    """Channels, and positions of which there may be more, in one softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x.flatten(1).softmax(1).view(x.shape))


def test_channels_merged_with_a_free_size_stay() -> None:
    image = torch.randn(2, 3, 4, 4)
    assert analyse_channels(capture(MergedWithPositions(), (image,))).groups
    analysis = analyse_channels(capture(MergedWithPositions(), (image,), dynamic={0: DynamicDims((2, 3))}))
    assert not analysis.groups
    assert "along a dimension whose size is free" in reasons(analysis)["first"]


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
