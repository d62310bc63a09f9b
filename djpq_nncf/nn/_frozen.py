# SPDX-License-Identifier: Apache-2.0
"""Quantizers whose grid no longer changes: what a stripped model carries into export."""

from typing import TypeVar

import torch
from torch import Tensor, nn

_Bits = TypeVar("_Bits", int, Tensor)


def signed_levels(bits: _Bits) -> _Bits:
    """Positive levels of a symmetric signed grid that fits in ``bits`` bits."""
    return unsigned_levels(bits - 1)


def unsigned_levels(bits: _Bits) -> _Bits:
    """Positive levels of an unsigned grid that fits in ``bits`` bits; exact for integers, also for tensors of them."""
    if isinstance(bits, Tensor) and bits.is_floating_point():
        return torch.exp2(bits) - 1
    return (1 << bits) - 1


def levels_below_zero(share: Tensor, levels: int | Tensor) -> Tensor:
    """How many of the levels of an asymmetric grid are negative, if that is to be a ``share`` of them.

    An even number: runtimes differ in whether they add the zero point before or after they round half to even.
    """
    share = share.detach().to(torch.promote_types(share.dtype, torch.float32))
    most = levels // 2
    below = (share * (levels / 2)).round()
    return 2 * (torch.minimum(below, most) if isinstance(most, Tensor) else below.clamp(max=most))


class FrozenWeightQuantizer(nn.Module):
    """Rounds a weight to ``step * {-(2^(bits-1) - 1), ..., 2^(bits-1) - 1}``.

    ``step`` is a scalar (per tensor) or has one entry per slice of dimension 0 (per output channel).
    """

    step: Tensor

    def __init__(self, step: Tensor, bits: int) -> None:
        super().__init__()
        self.register_buffer("step", step.detach().clone())
        self.bits = bits

    @property
    def levels(self) -> int:
        return signed_levels(self.bits)

    def codes(self, weight: Tensor) -> Tensor:
        """Integer grid positions of ``weight``, as a float tensor of the same shape."""
        return (weight / self._broadcast_step(weight)).round().clamp(-self.levels, self.levels)

    def forward(self, weight: Tensor) -> Tensor:
        return self.codes(weight) * self._broadcast_step(weight)

    def _broadcast_step(self, weight: Tensor) -> Tensor:
        if self.step.dim() == 0:
            return self.step
        return self.step.reshape(-1, *(1,) * (weight.dim() - 1))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, per_channel={self.step.dim() > 0}"


class FrozenActivationQuantizer(nn.Module):
    """Rounds an activation to ``step * {lowest, ..., highest}``; ``step`` is a scalar, ``lowest`` at most 0."""

    step: Tensor

    def __init__(self, step: Tensor, lowest: int, highest: int) -> None:
        super().__init__()
        self.register_buffer("step", step.detach().clone())
        self.lowest = lowest
        self.highest = highest

    @property
    def bits(self) -> int:
        """Bits that the codes fit in."""
        return max(2, (self.highest - self.lowest).bit_length())

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.step).round().clamp(self.lowest, self.highest) * self.step

    def extra_repr(self) -> str:
        return f"bits={self.bits}, codes={self.lowest}..{self.highest}"
