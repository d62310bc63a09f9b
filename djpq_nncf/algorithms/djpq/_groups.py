# SPDX-License-Identifier: Apache-2.0
"""Channel groups as a user handles them: see what goes with what, and prune by hand."""

from collections.abc import Sequence

from djpq_nncf.channels import ChannelGroup, Member, Role
from djpq_nncf.errors import PruningError
from djpq_nncf.nn import Gate


class PrunableGroup:
    """A channel group and its gate.

    ``print(group)`` lists where its channels live.
    """

    def __init__(self, group: ChannelGroup, gate: Gate) -> None:
        self._group = group
        self._gate = gate

    @property
    def name(self) -> str:
        """Name of the first layer that produces the channels, in attention with the role."""
        return self._group.name

    @property
    def size(self) -> int:
        """Number of channels, closed ones included."""
        return self._group.size

    @property
    def role(self) -> Role:
        """What the channels are; a key of ``pruning.dimensions``."""
        return self._group.role

    @property
    def members(self) -> tuple[Member, ...]:
        """Parameters the channels live in, with layer, dimension and slices for each channel."""
        return self._group.members

    @property
    def open_channels(self) -> tuple[int, ...]:
        """Indices of the channels that are still there."""
        return tuple(self._gate.open.nonzero().flatten().tolist())

    def close(self, indices: Sequence[int]) -> None:
        """Remove channels, for good.

        Raises:
            PruningError: an index is out of range, or no channel would be left; nothing is closed.
        """
        try:
            self._gate.close(indices)
        except ValueError as error:
            raise PruningError(f"Channel group '{self.name}': {error}.") from None

    def describe(self) -> str:
        """A line on the group, and one for each member."""
        head = f"{self.name} ({self.role}): {len(self.open_channels)} of {self.size} channels open"
        return "\n".join([head, *(f"  {member}" for member in self.members)])

    __str__ = describe

    def __repr__(self) -> str:
        return f"PrunableGroup('{self.name}', {self.role}, {len(self.open_channels)} of {self.size} channels open)"
