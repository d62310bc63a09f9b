# SPDX-License-Identifier: Apache-2.0
"""Applies gates where a channel group enters a channel-mixing operator: on its weight."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GatedWeight(nn.Module):
    """Scales the input channels of a weight by gate values.

    ``conv(z * x, W)`` equals ``conv(x, W * z)``. Scaling the weight costs a fraction of scaling the
    activation, and the mean of the gate always folds into the weight, also behind residual sums.

    Args:
        index: for each input channel its position in the concatenated gate vectors; their total length
            stands for a channel without a gate. Either one-dimensional, for dimension ``dim`` of the weight,
            or two-dimensional, for its dimensions 0 and 1 (a grouped conv, whose output channels see
            different inputs).
        dim: the weight's input-channel dimension; a two-dimensional index needs 0.

    Example:
        >>> gated = GatedWeight([0, 1, 2, 2], dim=1)  # two gated channels, two without a gate
        >>> gated(torch.ones(1, 4), torch.tensor([0.5, 0.0]))
        tensor([[0.5000, 0.0000, 1.0000, 1.0000]])
    """

    index: Tensor

    def __init__(self, index: Sequence[int] | Tensor, dim: int = 1) -> None:
        super().__init__()
        positions = torch.as_tensor(index, dtype=torch.long)
        if positions.dim() not in (1, 2) or (positions.dim() == 2 and dim != 0):
            raise ValueError(f"index of shape {list(positions.shape)} does not describe dimension {dim}")
        # Follows from the graph, so it is not state to save.
        self.register_buffer("index", positions.clone(), persistent=False)
        self.dim = dim
        self._consecutive = positions.dim() == 1 and torch.equal(positions.cpu(), torch.arange(positions.numel()))

    def forward(self, weight: Tensor, *gates: Tensor) -> Tensor:
        if self._consecutive and len(gates) == 1 and gates[0].numel() == self.index.numel():
            scale = gates[0]
        else:
            # Plain indexing: unlike index_select, its gradient is deterministic on every device.
            scale = torch.cat([*gates, weight.new_ones(1)])[self.index]
        trailing = weight.dim() - self.dim - scale.dim()
        return weight * scale.reshape(*scale.shape, *(1,) * trailing)

    def extra_repr(self) -> str:
        return f"channels={self.index.numel()}, dim={self.dim}"
