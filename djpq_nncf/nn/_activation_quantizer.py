# SPDX-License-Identifier: Apache-2.0
"""The quantizer inserted into an activation."""

import math

import torch
from torch import Tensor

from djpq_nncf.nn._frozen import FrozenActivationQuantizer
from djpq_nncf.nn._functional import quantize_activation
from djpq_nncf.nn._learned_quantizer import LearnedQuantizer


class ActivationQuantizer(LearnedQuantizer):
    """Learned step ``d`` and range ``q_m``; no exponent (``t`` = 1), no threshold (``q_s`` = 0).

    Args:
        signed: False where the tensor cannot be negative.
        min_bits: least bit-width that `project_` allows, at least 2.
        max_bits: greatest bit-width that `project_` allows, at most 32.
        power_of_two: quantize with the nearest bit-width of {2, 4, 8, 16, 32} while learning (Algorithm 2).
        rectifies: upper bound of the ReLU whose place an unsigned quantizer takes: its range stays within it. Infinity
            for a plain ReLU, None if there is none.

    Raises:
        ValueError: a signed quantizer cannot take the place of a ReLU.
    """

    def __init__(
        self,
        *,
        signed: bool,
        min_bits: int = 2,
        max_bits: int = 8,
        power_of_two: bool = False,
        rectifies: float | None = None,
    ) -> None:
        super().__init__(signed=signed, min_bits=min_bits, max_bits=max_bits, power_of_two=power_of_two)
        if signed and rectifies is not None:
            raise ValueError("a signed quantizer cannot take the place of a ReLU")
        self.rectifies = rectifies
        self.max_range = min(self.max_range, math.inf if rectifies is None else rectifies)
        self.initialize_(1.0, max_bits)

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            x = x if self.rectifies is None else x.clamp(0, self.rectifies)
            self.observer(x)
            return x
        high = self.range()
        low = -high if self.signed else torch.zeros_like(high)
        return quantize_activation(x, self.step(), low, high, compiled=self.compiled and self.training)

    def freeze(self) -> FrozenActivationQuantizer:
        """The fixed grid: the same function of the activation as this module's."""
        return FrozenActivationQuantizer(self.step(), self._require_bits(), signed=self.signed)
