# SPDX-License-Identifier: Apache-2.0
"""Which channels go together, written out by hand for small networks."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.channels import FIXED, ChannelAnalysis, analyse_channels
from tests.helpers import NETWORKS, images

Members = set[tuple[str, int, int]]
"""(parameter, dimension, slices that go with one channel)"""


def analyse(model: nn.Module) -> ChannelAnalysis:
    return analyse_channels(capture(model.eval(), (images(),)))


@functools.cache
def analysis_of(name: str) -> ChannelAnalysis:
    return analyse(NETWORKS[name]())


def weight(layer: str, times: int = 1) -> Members:
    """Output channels of a layer without bias."""
    return {(f"{layer}.weight", 0, times)}


def layer(name: str, times: int = 1) -> Members:
    """Output channels of a layer with bias."""
    return weight(name, times) | {(f"{name}.bias", 0, times)}


def norm(name: str, times: int = 1) -> Members:
    return {(f"{name}.{part}", 0, times) for part in ("weight", "bias", "running_mean", "running_var")}


def reads(layer: str, times: int = 1) -> Members:
    """Input channels of a layer."""
    return {(f"{layer}.weight", 1, times)}


EXPECTED: dict[str, dict[str, tuple[int, Members]]] = {
    "plain": {
        "conv1": (6, weight("conv1") | norm("bn1") | reads("conv2")),
        "conv2": (8, layer("conv2") | reads("fc1", 16)),
        "fc1": (12, layer("fc1") | reads("fc2")),
    },
    "identity_residual": {
        "stem": (6, layer("stem") | reads("conv1") | weight("conv2") | norm("bn2") | reads("fc")),
        "conv1": (7, weight("conv1") | norm("bn1") | reads("conv2")),
    },
    "projection_residual": {
        "stem": (4, layer("stem") | reads("conv1") | reads("shortcut")),
        "conv1": (6, weight("conv1") | norm("bn1") | reads("conv2")),
        "conv2": (8, weight("conv2") | norm("bn2") | weight("shortcut") | norm("bn3") | reads("fc")),
    },
    "bottleneck": {
        "stem.0": (
            8,
            weight("stem.0") | norm("stem.1") | reads("reduce.0") | weight("expand.0") | norm("expand.1") | reads("fc"),
        ),
        "reduce.0": (4, weight("reduce.0") | norm("reduce.1") | reads("middle.0")),
        "middle.0": (5, weight("middle.0") | norm("middle.1") | reads("expand.0")),
    },
    "depthwise_separable": {
        "expand.0": (
            6,
            weight("expand.0")
            | norm("expand.1")
            | weight("depthwise.0", 2)
            | norm("depthwise.1", 2)
            | reads("project.0", 2),
        ),
        "project.0": (4, weight("project.0") | norm("project.1") | reads("fc")),
    },
    "grouped": {
        "stem": (4, layer("stem", 2) | reads("grouped")),
        "grouped": (6, layer("grouped", 2) | reads("fc", 2)),
    },
    "concat": {
        "left": (4, layer("left") | reads("join")),
        "right": (6, layer("right") | reads("join")),
        "join": (5, layer("join") | reads("fc")),
    },
    "concat_split": {
        "left": (3, layer("left") | reads("first")),
        "left#2": (1, layer("left") | reads("second")),
        "right": (6, layer("right") | reads("second")),
        "first": (4, layer("first") | layer("second") | reads("fc")),
    },
    "squeeze_excite": {
        "conv.0": (8, weight("conv.0") | norm("conv.1") | reads("squeeze") | layer("excite") | reads("fc")),
        "squeeze": (3, layer("squeeze") | reads("excite")),
    },
    "pre_activation": {
        "conv0": (6, weight("conv0") | norm("bn1") | reads("conv1") | norm("bn2") | reads("conv2")),
        "conv1": (4, weight("conv1") | norm("bn2") | reads("conv2")),
        "conv2": (5, weight("conv2") | norm("bn3") | reads("fc")),
    },
    "shared_weight": {"stem": (6, layer("stem") | layer("shared") | reads("shared") | reads("fc"))},
    "shared_norm": {
        "left": (6, layer("left") | layer("right") | norm("norm") | reads("a") | reads("b")),
        "a": (4, layer("a") | reads("fc")),
        "b": (4, layer("b") | reads("fc")),
    },
    "padded_shortcut": {
        "stem.0": (
            6,
            weight("stem.0") | norm("stem.1") | reads("conv1.0") | weight("conv2.0") | norm("conv2.1") | reads("fc"),
        ),
        "conv1.0": (10, weight("conv1.0") | norm("conv1.1") | reads("conv2.0")),
    },
    "movement": {
        "conv1": (8, layer("conv1") | {("scale", 0, 1), ("prelu.weight", 0, 1), ("up.weight", 0, 1)}),
        "up": (2, {("up.weight", 1, 1), ("up.bias", 0, 1)} | reads("conv3")),
        "up#2": (4, {("up.weight", 1, 1), ("up.bias", 0, 1)} | reads("conv2")),
        "conv2": (7, layer("conv2") | layer("conv3") | reads("mixer")),
        "mixer": (9, layer("mixer") | reads("fc")),
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_groups(name: str) -> None:
    analysis = analysis_of(name)
    found = {
        group.name: (group.size, {(member.parameter, member.dim, member.multiplicity) for member in group.members})
        for group in analysis.groups.values()
    }
    assert found == EXPECTED[name]
    assert list(found) == list(EXPECTED[name]), "in the order of the graph"


@pytest.mark.parametrize("name", NETWORKS)
def test_output_stays(name: str) -> None:
    analysis = analysis_of(name)
    (last,) = (entry for entry in analysis.frozen if entry.reason == "is an output of the network")
    assert last.count == 5
    rows = analysis.parameter_labels[f"{last.layer}.weight"][0]
    assert rows is not None
    assert (rows == FIXED).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_ids_cover_every_group_once(name: str) -> None:
    analysis = analysis_of(name)
    ids = [i for group in analysis.groups.values() for i in group.channels]
    assert ids == list(range(analysis.channel_count))
    assert all(i in analysis.groups[analysis.channel_group[i]].channels for i in ids)
    for group in analysis.groups.values():
        assert len({(m.parameter, m.dim) for m in group.members}) == len(group.members)
        for member in group.members:
            labels = analysis.parameter_labels[member.parameter][member.dim]
            assert labels is not None
            assert [int((labels == i).sum()) for i in group.channels] == [member.multiplicity] * group.size


def test_offsets_of_a_concatenation() -> None:
    """Columns of the consumer follow the producers in their order."""
    analysis = analyse(NETWORKS["concat"]())
    columns = analysis.parameter_labels["join.weight"][1]
    assert columns is not None
    assert columns.tolist() == [*analysis.groups["left"].channels, *analysis.groups["right"].channels]


def test_positions_of_a_flattened_channel() -> None:
    analysis = analyse(NETWORKS["plain"]())
    columns = analysis.parameter_labels["fc1.weight"][1]
    assert columns is not None
    assert columns.tolist() == [i for i in analysis.groups["conv2"].channels for _ in range(16)]


def test_depthwise_outputs_of_one_input_are_neighbours() -> None:
    analysis = analyse(NETWORKS["depthwise_separable"]())
    rows = analysis.parameter_labels["depthwise.0.weight"][0]
    assert rows is not None
    assert rows.tolist() == [i for i in analysis.groups["expand.0"].channels for _ in range(2)]


def test_convolution_groups_share_positions() -> None:
    analysis = analyse(NETWORKS["grouped"]())
    rows = analysis.parameter_labels["stem.weight"][0]
    assert rows is not None
    assert rows.tolist() == 2 * list(analysis.groups["stem"].channels)


class TwoInputs(nn.Module):
    """One weight reads two producers, so their channels are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(self.shared(F.relu(part))) for part in (self.left(x), self.right(x))]
        return self.fc(torch.cat(parts, 1).mean((2, 3)))


def test_one_weight_for_two_producers() -> None:
    analysis = analyse(TwoInputs())
    found = {g.name: {(m.parameter, m.dim, m.multiplicity) for m in g.members} for g in analysis.groups.values()}
    assert found == {
        "left": layer("left") | layer("right") | reads("shared"),
        "shared": layer("shared") | reads("fc", 2),
    }


def test_excluded_layer_stays() -> None:
    graph = capture(NETWORKS["identity_residual"]().eval(), (images(),))
    analysis = analyse_channels(graph, is_prunable=lambda name: name != "conv2")
    assert list(analysis.groups) == ["conv1"]
    reasons = {entry.layer: entry.reason for entry in analysis.frozen}
    assert reasons["stem"] == reasons["conv2"] == "'conv2' is excluded by the configuration"
