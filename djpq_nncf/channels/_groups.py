# SPDX-License-Identifier: Apache-2.0
"""What the dependency analysis finds: channel groups, and channels that must stay."""

from dataclasses import dataclass, field

import numpy as np

from djpq_nncf.channels._labels import Labels, TensorLabels

FIXED = -1
"""Label of an index that cannot be removed (frozen channel, or padding of a flattened dimension)."""


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


@dataclass(frozen=True)
class ChannelGroup:
    """Channels with the same members: one gate with ``size`` entries.

    ``channels`` are the ids of its channels in all labels of the analysis, in the order of the gate's entries.
    """

    name: str
    channels: range
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Number of channels that can be removed independently of each other."""
        return len(self.channels)


@dataclass(frozen=True)
class FrozenChannels:
    """Output channels of a layer that must stay, and why."""

    layer: str
    count: int
    reason: str


@dataclass(frozen=True)
class Consumer:
    """Dimension ``dim`` of ``weight`` runs over channels, which the node ``operator`` mixes with it."""

    operator: str
    weight: str
    dim: int


@dataclass(frozen=True)
class ChannelAnalysis:
    """Channel groups of a captured graph.

    Attributes:
        groups: by name, in topological order of their first layer.
        node_labels: node name -> labels of its value (tensor-valued nodes only).
        parameter_labels: state-dict name -> labels of the parameter or buffer.
        consumers: the weights in front of which a gate acts.
        frozen: output channels that must stay.
        channel_group: for each channel id the name of its group.
    """

    groups: dict[str, ChannelGroup]
    node_labels: dict[str, TensorLabels]
    parameter_labels: dict[str, TensorLabels]
    consumers: tuple[Consumer, ...]
    frozen: tuple[FrozenChannels, ...]
    channel_group: tuple[str, ...] = field(repr=False)

    @property
    def channel_count(self) -> int:
        """Number of removable channels over all groups."""
        return sum(group.size for group in self.groups.values())


def kept_mask(labels: Labels, keep: np.ndarray) -> np.ndarray:
    """Boolean per index of a dimension: which remain, when ``keep[channel]`` says which channels do."""
    return np.append(keep, True)[labels]  # FIXED is -1, the entry appended


def kept_indices(labels: Labels, keep: np.ndarray) -> Labels:
    """Indices of a dimension that remain."""
    return np.flatnonzero(kept_mask(labels, keep))
