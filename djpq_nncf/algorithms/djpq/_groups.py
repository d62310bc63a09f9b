# SPDX-License-Identifier: Apache-2.0
"""Channel groups as a user handles them: see what goes with what, and prune by hand."""

from collections.abc import Sequence

from djpq_nncf.channels import ChannelGroup, Member
from djpq_nncf.nn import Gate


class PrunableGroup:
    """A channel group and its gate."""

    def __init__(self, group: ChannelGroup, gate: Gate) -> None:
        self._group = group
        self._gate = gate

    @property
    def name(self) -> str:
        """Name of the first layer that produces the channels."""
        return self._group.name

    @property
    def size(self) -> int:
        """Number of channels, closed ones included."""
        return self._group.size

    @property
    def members(self) -> tuple[Member, ...]:
        """Parameters the channels live in, with the dimension."""
        return self._group.members

    @property
    def open_channels(self) -> tuple[int, ...]:
        """Indices of the channels that are still there."""
        return tuple(self._gate.open.nonzero().flatten().tolist())

    def close(self, indices: Sequence[int]) -> None:
        """Remove channels, for good.

        Raises:
            ValueError: an index is out of range, or no channel would be left.
        """
        try:
            self._gate.close(indices)
        except ValueError as error:
            raise ValueError(f"Channel group '{self.name}': {error}") from None

    def __repr__(self) -> str:
        return f"PrunableGroup('{self.name}', {len(self.open_channels)} of {self.size} channels)"
