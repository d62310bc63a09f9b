# SPDX-License-Identifier: Apache-2.0
"""What the dependency analysis finds: channel groups, and channels that must stay."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from djpq_nncf.channels._labels import Labels, TensorLabels
from djpq_nncf.channels._movement import Regather

FIXED = -1
"""Label of an index that cannot be removed, and filler where an index belongs to fewer channels than others."""

Role = Literal["hidden", "residual", "attention_heads", "query_key_width", "value_width"]
"""What the channels of a group are: width between two layers, a stream that several layers add to, or a part of
attention."""

ROLES: tuple[Role, ...] = get_args(Role)

CHANNELS_OF: dict[Role, str] = {
    "hidden": "hidden channels",
    "residual": "channels of the residual stream",
    "attention_heads": "attention heads",
    "query_key_width": "channels of queries and keys",
    "value_width": "channels of values",
}
"""What users call the channels of a group."""


@dataclass(frozen=True)
class Member:
    """A dimension of a parameter or buffer in which the channels of a group live.

    Removing one channel of the group removes ``multiplicity`` slices along ``dim``.
    """

    parameter: str
    dim: int
    multiplicity: int

    @property
    def layer(self) -> str:
        """Module path of the layer the parameter belongs to."""
        return self.parameter.rpartition(".")[0] or self.parameter

    def __str__(self) -> str:
        slices = "1 slice" if self.multiplicity == 1 else f"{self.multiplicity} slices"
        return f"{self.parameter}, dimension {self.dim}: {slices} per channel"


@dataclass(frozen=True)
class ChannelGroup:
    """Channels with the same members: one gate with ``size`` entries.

    ``channels`` are the ids of its channels in all labels of the analysis, in the order of the gate's entries.
    """

    name: str
    channels: range
    members: tuple[Member, ...]
    role: Role

    @property
    def size(self) -> int:
        """Number of channels that can be removed independently of each other."""
        return len(self.channels)


@dataclass(frozen=True)
class FrozenChannels:
    """Output channels of a layer that must stay, and why.

    ``role`` is set where the channels can go in another respect: ``count`` heads, say, stay, but can become narrower.
    """

    layer: str
    count: int
    reason: str
    role: Role | None = None

    @property
    def what(self) -> str:
        """What stays, with its number."""
        return f"{self.count} {'channels' if self.role is None else CHANNELS_OF[self.role]}"

    def __str__(self) -> str:
        return f"{self.layer}: {self.what} stay, {self.reason}"


@dataclass(frozen=True, eq=False)
class Producer:
    """A layer with output channels ``ids``, and the (parameter, dimension) they are made by."""

    layer: str
    ids: Labels
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Consumer:
    """Dimension ``dim`` of ``weight`` runs over channels, which the node ``operator`` mixes with it."""

    operator: str
    weight: str
    dim: int


@dataclass(frozen=True)
class GatePoint:
    """Where gates act: along dimension ``dim`` of a parameter, with ``labels`` [n, k] (FIXED where none does)."""

    parameter: str
    dim: int
    labels: Labels


@dataclass(frozen=True)
class OpenCall:
    """An operator that relates channels to each other, so that closed ones must not take part.

    Attributes:
        inputs: position among the operator's inputs -> dimension -> labels along it.
        output: dimension of the result -> labels along it.
    """

    inputs: dict[int, dict[int, Labels]]
    output: dict[int, Labels]


@dataclass(frozen=True)
class ChannelAnalysis:
    """Channel groups of a captured graph.

    Labels of a dimension are [n, k]: index i belongs to up to k channels at once (head and width), and remains if
    all of them do.

    Attributes:
        groups: by name, in topological order of their first layer.
        node_labels: node name -> labels of its value (tensor-valued nodes whose remainder is always a grid).
        parameter_labels: state-dict name -> labels of the parameter or buffer.
        gate_points: the parameters on which gates act.
        frozen: output channels that must stay.
        channel_group: for each channel id the name of its group.
        run_on_open: name of a node that relates channels to each other -> where.
        regathers: node name -> how its value comes from an earlier one where what lies between is not a grid.
        products: name of a node that multiplies and accumulates -> for each product the labels whose remaining shares
            multiply to the remaining share of its MACs.
    """

    groups: dict[str, ChannelGroup]
    node_labels: dict[str, TensorLabels]
    parameter_labels: dict[str, TensorLabels]
    gate_points: tuple[GatePoint, ...]
    frozen: tuple[FrozenChannels, ...]
    channel_group: tuple[str, ...] = field(repr=False)
    run_on_open: dict[str, OpenCall]
    regathers: dict[str, Regather]
    products: dict[str, tuple[TensorLabels, ...]]

    @property
    def channel_count(self) -> int:
        """Number of removable channels over all groups."""
        return sum(group.size for group in self.groups.values())


def kept_mask(labels: Labels, keep: np.ndarray) -> np.ndarray:
    """Boolean per index of a dimension: which remain, when ``keep[channel]`` says which channels do."""
    return np.asarray(np.append(keep, True)[labels].all(axis=-1))  # FIXED is -1, the entry appended


def kept_indices(labels: Labels, keep: np.ndarray) -> Labels:
    """Indices of a dimension that remain."""
    return np.flatnonzero(kept_mask(labels, keep))
