# SPDX-License-Identifier: Apache-2.0
"""The quantizer inserted behind a weight."""

import torch
from torch import Tensor, nn

from djpq_nncf.nn._frozen import FrozenWeightQuantizer, signed_levels
from djpq_nncf.nn._functional import map_values, quantize_weight
from djpq_nncf.nn._learned_quantizer import LearnedQuantizer, exp_scalar

SMALL_VALUE_SHARE = 1e-6


class WeightQuantizer(LearnedQuantizer):
    """Signed, with learned step ``d``, range ``q_m`` and exponent ``t``, and a small fixed threshold ``q_s``.

    Args:
        min_bits: least bit-width that `project_` allows, at least 2.
        max_bits: greatest bit-width that `project_` allows, at most 32.
        learn_exponent: whether ``t`` is learned; else it is 1, without a parameter and without its work.
        power_of_two: quantize with the nearest bit-width of {2, 4, 8, 16, 32} while learning (Algorithm 2).

    Attributes:
        small_value: ``q_s``, a buffer: 1e-6 of the range at `initialize_`.
    """

    small_value: Tensor

    def __init__(
        self,
        *,
        min_bits: int = 2,
        max_bits: int = 8,
        learn_exponent: bool = False,
        power_of_two: bool = False,
    ) -> None:
        super().__init__(symmetric=True, min_bits=min_bits, max_bits=max_bits, power_of_two=power_of_two)
        self.learn_exponent = learn_exponent
        self.log_exponent = nn.Parameter(torch.zeros(())) if learn_exponent else None
        self.register_buffer("small_value", torch.zeros(()))
        self.initialize_(1.0, max_bits)

    def forward(self, weight: Tensor, gate: Tensor | None = None) -> Tensor:
        """``gate``: factors that broadcast to the weight, applied first."""
        if self.observer is not None:
            weight = weight if gate is None else weight * gate.to(weight.dtype)
            self.observer(weight)
            return weight
        grid = self.step(), self.range(), self.exponent(), self.threshold()
        return quantize_weight(weight, *grid, gate, compiled=self.compiled and self.training)

    def exponent(self) -> Tensor | None:
        if self.log_exponent is None:
            return None
        return exp_scalar(self.log_exponent)

    def threshold(self) -> Tensor:
        return self.small_value

    def codes(self) -> tuple[int, int]:
        levels = signed_levels(self._require_bits())
        return -levels, levels

    def freeze(self) -> FrozenWeightQuantizer:
        """The fixed grid, for weights that went through `quantized`."""
        return FrozenWeightQuantizer(self.step(), self._require_bits())

    def _mapped(self, x: Tensor) -> Tensor:
        return map_values(x, self.range(), self.exponent(), self.threshold())

    def _reset_mapping(self, q_m: float) -> None:
        self.small_value.fill_(SMALL_VALUE_SHARE * q_m)
        if self.log_exponent is not None:
            self.log_exponent.zero_()
