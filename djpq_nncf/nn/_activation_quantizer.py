# SPDX-License-Identifier: Apache-2.0
"""The quantizer inserted into an activation."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from djpq_nncf.nn._frozen import FrozenActivationQuantizer, levels_below_zero, signed_levels, unsigned_levels
from djpq_nncf.nn._functional import quantize_activation
from djpq_nncf.nn._learned_quantizer import LearnedQuantizer, straight_through

Grid = Literal["unsigned", "symmetric", "asymmetric"]


class ActivationQuantizer(LearnedQuantizer):
    """Learned step ``d`` and range ``q_m``; no exponent (``t`` = 1), no threshold (``q_s`` = 0).

    Which values the grid covers: [0, q_m] if it is unsigned, [-q_m - d, q_m] if it is symmetric: in two's complement
    there is one more code below zero than above. The paper has [0, q_m] and [-q_m, q_m].
    An asymmetric one covers [-s q_m, (1 - s) q_m] with a learned share s: ``q_m`` is its width, and its bit-width is
    that of an unsigned grid.

    Args:
        grid: unsigned where the tensor cannot be negative, asymmetric where its negative values are small.
        min_bits: least bit-width that `project_` allows, at least 2.
        max_bits: greatest bit-width that `project_` allows, at most 32.
        power_of_two: quantize with the nearest bit-width of {2, 4, 8, 16, 32} while learning (Algorithm 2).
        rectifies: upper bound of the ReLU whose place an unsigned quantizer takes: its range stays within it. Infinity
            for a plain ReLU, None if there is none.

    Raises:
        ValueError: a quantizer with negative values cannot take the place of a ReLU.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        min_bits: int = 2,
        max_bits: int = 8,
        power_of_two: bool = False,
        rectifies: float | None = None,
    ) -> None:
        super().__init__(symmetric=grid == "symmetric", min_bits=min_bits, max_bits=max_bits, power_of_two=power_of_two)
        if grid != "unsigned" and rectifies is not None:
            raise ValueError("a quantizer with negative values cannot take the place of a ReLU")
        self.grid = grid
        self.rectifies = rectifies
        self.max_range = min(self.max_range, math.inf if rectifies is None else rectifies)
        self.low_share = nn.Parameter(torch.zeros(())) if grid == "asymmetric" else None
        self.initialize_(1.0, max_bits)

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            x = x if self.rectifies is None else x.clamp(0, self.rectifies)
            self.observer(x)
            return x
        step = self.step()
        return quantize_activation(x, step, *self.limits(step), compiled=self.compiled and self.training)

    def limits(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the greatest value, differentiable.

        The smallest one of an asymmetric grid is a multiple of ``step``, both are once the bit-width is fixed.
        """
        width = self.range()
        if self.low_share is None:
            return (-width - step if self.symmetric else torch.zeros_like(width)), width
        low = -self.low_share.to(width.dtype) * width
        high = low + width
        levels = self.levels().detach()
        below = levels_below_zero(self.low_share, levels)
        return straight_through(-below * step, low), straight_through((levels - below) * step, high)

    @torch.no_grad()
    def initialize_(self, q_m: float, bits: float, *, low_share: float | None = None) -> None:
        """As in `LearnedQuantizer`; ``low_share``: which part of an asymmetric grid is below zero, None: as it is."""
        if self.low_share is not None and low_share is not None:
            self.low_share.fill_(low_share)
        super().initialize_(q_m, bits)

    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code of the fixed grid."""
        return self.codes_with(self._require_bits())

    def codes_with(self, bits: int) -> tuple[int, int]:
        """The same for ``bits`` bits."""
        if self.symmetric:
            return -signed_levels(bits) - 1, signed_levels(bits)
        levels = unsigned_levels(bits)
        below = 0 if self.low_share is None else int(levels_below_zero(self.low_share, levels))
        return -below, levels - below

    def freeze(self) -> FrozenActivationQuantizer:
        """The fixed grid: the same function of the activation as this module's."""
        return FrozenActivationQuantizer(self.step(), *self.codes())
