# SPDX-License-Identifier: Apache-2.0
"""Applies gates to a weight, along the dimension in which their channels live."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GateScale(nn.Module):
    """Factors of gates along one dimension of a weight, in a shape that broadcasts to it.

    ``conv(z * x, W)`` equals ``conv(x, W * z)``. Scaling the weight costs a fraction of scaling the
    activation, and the mean of the gate always folds into the weight, also behind residual sums.

    Args:
        index: [n, k] or [n], for each index of the dimension the positions in the concatenated gate vectors
            whose values are multiplied; their total length stands for no gate.
        trailing: how many dimensions of the weight follow.

    Example:
        >>> scale = GateScale([0, 1, 2, 2])  # two gated channels, two without a gate
        >>> scale(torch.tensor([0.5, 0.0]))
        tensor([0.5000, 0.0000, 1.0000, 1.0000])
    """

    index: Tensor

    def __init__(self, index: Sequence[int] | Tensor, trailing: int = 0) -> None:
        super().__init__()
        positions = torch.as_tensor(index, dtype=torch.long)
        positions = positions.reshape(len(positions), -1)
        # Follows from the graph, so it is not state to save.
        self.register_buffer("index", positions.clone(), persistent=False)
        self.trailing = trailing
        self._consecutive = torch.equal(positions.cpu(), torch.arange(len(positions)).unsqueeze(1))

    def forward(self, *gates: Tensor) -> Tensor:
        if self._consecutive and len(gates) == 1 and gates[0].numel() == self.index.numel():
            scale = gates[0]
        else:
            # Plain indexing: unlike index_select, its gradient is deterministic on every device.
            scale = torch.cat([*gates, gates[0].new_ones(1)])[self.index].prod(dim=1)
        return scale.reshape(-1, *(1,) * self.trailing)

    def extra_repr(self) -> str:
        return f"channels={len(self.index)}, trailing={self.trailing}"


class GatedWeight(nn.Module):
    """A weight times factors that broadcast to it, in the weight's data type."""

    def forward(self, weight: Tensor, *scales: Tensor) -> Tensor:
        for scale in scales:
            weight = weight * scale.to(weight.dtype)
        return weight
