# SPDX-License-Identifier: Apache-2.0
"""Which channels go together, written out by hand for small networks."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.channels import FIXED, ROLES, ChannelAnalysis, Role, analyse_channels
from tests.channels.cases import CASES, Members, found_groups, layer, norm, reads, weight
from tests.helpers import NETWORKS, images


def analyse(model: nn.Module) -> ChannelAnalysis:
    return analyse_channels(capture(model.eval(), (images(),)))


@functools.cache
def analysis_of(name: str) -> ChannelAnalysis:
    return analyse(NETWORKS[name]())


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
        # two convolution groups, inputs in each of them, outputs in each of them
        "stem": (2, layer("stem", 4) | layer("grouped", 6) | reads("fc", 6)),
        "stem#2": (4, layer("stem", 2) | reads("grouped")),
        "grouped": (6, layer("grouped", 2) | reads("fc", 2)),
    },
    "concat": {
        "left": (4, layer("left") | reads("join")),
        "right": (6, layer("right") | reads("join")),
        "join": (5, layer("join") | reads("fc")),
    },
    "concat_split": {
        "left": (3, layer("left") | reads("first")),  # its last channel is the only one that goes into second
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
    found = found_groups(analysis)
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
            slices = [int((labels == i).any(axis=-1).sum()) for i in group.channels]
            assert slices == [member.multiplicity] * group.size


def labels_of(name: str, parameter: str, dim: int) -> list[list[int]]:
    """For each index of a dimension the channels it belongs to, FIXED left out."""
    labels = analysis_of(name).parameter_labels[parameter][dim]
    assert labels is not None
    return [sorted(i for i in index if i != FIXED) for index in labels.tolist()]


def channels_of(name: str, *groups: str) -> list[list[int]]:
    analysis = analysis_of(name)
    return [[i] for group in groups for i in analysis.groups[group].channels]


def test_offsets_of_a_concatenation() -> None:
    """Columns of the consumer follow the producers in their order."""
    assert labels_of("concat", "join.weight", 1) == channels_of("concat", "left", "right")


def test_positions_of_a_flattened_channel() -> None:
    expected = [i for i in channels_of("plain", "conv2") for _ in range(16)]
    assert labels_of("plain", "fc1.weight", 1) == expected


def test_depthwise_outputs_of_one_input_are_neighbours() -> None:
    expected = [i for i in channels_of("depthwise_separable", "expand.0") for _ in range(2)]
    assert labels_of("depthwise_separable", "depthwise.0.weight", 0) == expected


def test_rows_of_a_grouped_convolution() -> None:
    """Each goes with its convolution group, and with its position in all of them."""
    which, position = channels_of("grouped", "stem"), channels_of("grouped", "stem#2")
    assert labels_of("grouped", "stem.weight", 0) == [w + p for w in which for p in position]
    outputs = channels_of("grouped", "grouped")
    assert labels_of("grouped", "grouped.weight", 0) == [w + o for w in which for o in outputs]
    assert labels_of("grouped", "grouped.weight", 1) == position


def test_columns_behind_another_order() -> None:
    """Heads and widths read in the other order: column 2 w + h belongs to row 4 h + w."""
    analysis = analyse_channels(capture(OtherOrder().eval(), (images(),)))
    rows, columns = (analysis.parameter_labels[name][dim] for name, dim in (("conv.weight", 0), ("fc.weight", 1)))
    assert rows is not None and columns is not None
    assert columns.tolist() == rows[[0, 4, 1, 5, 2, 6, 3, 7]].tolist()
    assert analysis.channel_count == 8


class OtherOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return self.fc(x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8))


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
    assert found_groups(analysis) == {
        "left": (4, layer("left") | layer("right") | reads("shared")),
        "shared": (6, layer("shared") | reads("fc", 2)),
    }


def test_excluded_layer_stays() -> None:
    graph = capture(NETWORKS["identity_residual"]().eval(), (images(),))
    analysis = analyse_channels(graph, is_prunable=lambda name: name != "conv2")
    assert list(analysis.groups) == ["conv1"]
    reasons = {entry.layer: entry.reason for entry in analysis.frozen}
    assert reasons["stem"] == reasons["conv2"] == "'conv2' is excluded by the configuration"


def test_roles() -> None:
    """What several layers add to is a residual stream; the rest of a convolutional network is hidden."""
    for name, streams in (
        ("identity_residual", {"stem"}),
        ("projection_residual", {"conv2"}),
        ("bottleneck", {"stem.0"}),
        ("concat", set()),
        ("squeeze_excite", set()),
    ):
        groups = analysis_of(name).groups.values()
        assert {group.name for group in groups if group.role == "residual"} == streams
        assert {group.role for group in groups} <= {"residual", "hidden"}


@pytest.mark.parametrize("role", ROLES)
def test_role_that_is_off_stays(role: Role) -> None:
    """The other groups keep their members."""
    case = CASES["attention: encoder"]
    graph = capture(case.build().double().eval(), case.inputs())
    whole = analyse_channels(graph)
    analysis = analyse_channels(graph, roles=frozenset(ROLES) - {role})
    expected = {name: group for name, group in found_groups(whole).items() if whole.groups[name].role != role}
    assert found_groups(analysis) == expected
    assert {group.role for group in whole.groups.values()} == set(ROLES)
    frozen = [entry for entry in analysis.frozen if entry.reason == f"'pruning.dimensions.{role}' is off"]
    sizes = [group.size for group in whole.groups.values() if group.role == role]
    assert {entry.count for entry in frozen} == set(sizes)


GATE_POINTS: dict[str, set[tuple[str, int]]] = {
    # where channels are read
    "tearing: consumed flattened and pooled": {("flat.weight", 1), ("pooled.weight", 1)},
    "blocks: grouped transposed convolution": {("up.weight", 0), ("out.weight", 1)},
    "blocks: table that is the output layer": {("head.weight", 1), ("up.weight", 1), ("down.weight", 1)},
    # channels that only a product of activations sums over: where they are produced, in one of the two
    "attention: separate": {("k.weight", 0), ("k.bias", 0), ("out.weight", 1)},
    "attention: fused by unbind": {("qkv.weight", 0), ("qkv.bias", 0), ("out.weight", 1)},
    "attention: torn and whole": {("whole.weight", 1), ("out.weight", 1)},
}


@pytest.mark.parametrize("name", GATE_POINTS)
def test_gates_act_where_channels_are_mixed(name: str) -> None:
    case = CASES[name]
    analysis = analyse_channels(capture(case.build().double().eval(), case.inputs()))
    assert {(point.parameter, point.dim) for point in analysis.gate_points} == GATE_POINTS[name]
    gated = {int(i) for point in analysis.gate_points for i in point.labels.flatten()} - {FIXED}
    assert gated == set(range(analysis.channel_count))


def test_keys_are_gated_within_a_fused_projection() -> None:
    """Rows of queries, keys and values follow one another; gates of the width act on the keys' alone."""
    case = CASES["attention: fused by unbind"]
    analysis = analyse_channels(capture(case.build().double().eval(), case.inputs()))
    (point,) = (point for point in analysis.gate_points if point.parameter == "qkv.weight")
    width = analysis.groups["qkv/query_key_width"].channels
    gated = [[i for i in index if i in width] for index in point.labels.tolist()]
    assert gated == [[]] * 8 + [[i] for _ in range(2) for i in width] + [[]] * 8
