# SPDX-License-Identifier: Apache-2.0
"""What the weight and the activation quantizer share: a grid whose number of levels and range are learned."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from djpq_nncf.errors import CheckpointError, DataError
from djpq_nncf.nn import _functional as functional
from djpq_nncf.nn._frozen import unsigned_levels
from djpq_nncf.nn._optional_state import OptionalState

MIN_RANGE = 1e-8
MAX_RANGE = 1e8


class LearnedQuantizer(OptionalState):
    """Quantizes by eq. (2) with a step size ``d`` and a range ``q_m`` that follow from two learned logarithms.

    One is of the number of positive levels ``(q_m - q_s)^t / d``, which is the bit-width. The other is of a scale, the
    range in units of `normal_range`: with fewer levels the range shrinks as far as is best for normally distributed
    values. So bits can fall without a range that follows late, or one that the price of bits has driven too far down.

    It starts with a learned bit-width. `fix_bits` ends that; the scale stays trainable.

    Args:
        symmetric: whether the grid reaches as far below zero as above, and so has a bit for the sign.
        min_bits: least bit-width that `project_` allows, at least 2.
        max_bits: greatest bit-width that `project_` allows, at most 32.
        power_of_two: quantize with the nearest bit-width of {2, 4, 8, 16, 32} while learning (Algorithm 2).

    Attributes:
        observer: while set, values pass through unchanged and are given to it (see `observe`).
        compiled: whether torch.compile makes one loop of the element-wise work in training. It pays off for tensors of
            some ten thousand values, and costs seconds once.
        max_range: `project_` keeps the range within it.
    """

    fixed_bits: Tensor
    log_exponent: nn.Parameter | None
    low_share: nn.Parameter | None
    small_value: Tensor | None

    def __init__(self, *, symmetric: bool, min_bits: int, max_bits: int, power_of_two: bool) -> None:
        super().__init__()
        if not 2 <= min_bits <= max_bits <= 32:
            raise ValueError(f"bit-widths must satisfy 2 <= min <= max <= 32, got {min_bits} and {max_bits}")
        self.symmetric = symmetric
        self.min_bits = min_bits
        self.max_bits = max_bits
        self.power_of_two = power_of_two
        self.observer: Callable[[Tensor], object] | None = None
        self.compiled = False
        self.max_range = MAX_RANGE
        self.log_levels = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_parameter("log_exponent", None)
        self.register_parameter("low_share", None)
        self.register_buffer("small_value", None)
        self.register_buffer("fixed_bits", torch.zeros((), dtype=torch.int64))
        # Mirrors the buffer, so that forward neither waits for a device nor breaks a compiled graph.
        self._bits = 0
        if power_of_two:
            functional.nearest_power_of_two(torch.tensor(8.0), min_bits, max_bits)  # raises if the limits allow none

    @property
    def bits(self) -> int | None:
        """The bit-width once it is fixed, None while it is learned."""
        return self._bits or None

    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code of the fixed grid."""
        raise NotImplementedError

    def range(self) -> Tensor:
        """``q_m``, the largest value of the input that is represented; the width of an asymmetric grid."""
        return exp_scalar(self.log_scale) * functional.normal_range(self.levels())

    def exponent(self) -> Tensor | None:
        """``t`` of the mapping (1), None where it is exactly 1."""
        return None

    def threshold(self) -> Tensor | float:
        """``q_s``, below which the input becomes zero."""
        return 0.0

    def levels(self) -> Tensor:
        """Positive levels in effect: those of the fixed bits, restricted to powers of two bits, or learned."""
        if self._bits:
            return unsigned_levels(self.fixed_bits - int(self.symmetric))
        learned = exp_scalar(self.log_levels)
        if not self.power_of_two:
            return learned
        with torch.no_grad():
            bits = functional.nearest_power_of_two(
                functional.bits_of(learned, self.symmetric), lowest=self.min_bits, highest=self.max_bits
            )
            restricted = unsigned_levels(bits - int(self.symmetric))
        return straight_through(restricted, learned)

    def step(self) -> Tensor:
        """``d``, the step size in effect."""
        return functional.mapped_range(self.range(), self.exponent(), self.threshold()) / self.levels()

    def continuous_bits(self) -> Tensor:
        """Bit-width in effect, differentiable: ``Quantizers.continuous_bits`` of this one."""
        return Quantizers([self]).continuous_bits()[0]

    @contextmanager
    def observe(self, observer: Callable[[Tensor], object]) -> Iterator[None]:
        """Within the context, pass values through unchanged and give each tensor to ``observer``."""
        previous, self.observer = self.observer, observer
        try:
            yield
        finally:
            self.observer = previous

    @torch.no_grad()
    def initialize_(self, q_m: float, bits: float) -> None:
        """Start from range ``q_m`` and ``bits`` bits, kept within the limits of `project_`.

        Raises:
            DataError: ``q_m`` is not finite.
        """
        if not math.isfinite(q_m):
            raise DataError(f"a quantizer cannot start from the range {q_m}: look for NaN or inf in the data")
        q_m = min(max(q_m, MIN_RANGE), self.max_range)
        bits = min(max(bits, self.min_bits), self.max_bits)
        self.log_levels.fill_(math.log(2.0 ** (bits - self.symmetric) - 1))
        self.log_scale.copy_((q_m / functional.normal_range(self.levels())).log())
        self._reset_mapping(q_m)
        self.project_()

    @torch.no_grad()
    def limit_range_(self, q_m: Tensor) -> None:
        """Lower the range to ``q_m`` where it exceeds that, a positive scalar."""
        limit = (q_m / functional.normal_range(self.levels())).log().to(self.log_scale)
        self.log_scale.copy_(torch.minimum(self.log_scale, limit))
        self.project_()

    def project_(self) -> None:
        """Move range, exponent and levels into their limits: ``Quantizers.project_`` of this one."""
        Quantizers([self]).project_()

    def fix_bits(self, bits: int) -> None:
        """Use ``bits`` bits from now on. The range follows; its scale and the exponent stay trainable."""
        if not 2 <= bits <= 32:
            raise ValueError(f"bits must be within [2, 32], got {bits}")
        self.fixed_bits.fill_(bits)
        self._follow_fixed_bits()
        self.project_()

    @torch.no_grad()
    def grid_codes(self, x: Tensor) -> Tensor:
        """Integer positions of ``x`` on the fixed grid, int64, within the levels."""
        return self._codes(x).to(torch.int64)

    @torch.no_grad()
    def quantized(self, x: Tensor) -> Tensor:
        """``x`` on the fixed grid: codes times step. The frozen quantizer returns it bit for bit."""
        return (self._codes(x) * self.step()).to(x.dtype)

    def _codes(self, x: Tensor) -> Tensor:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        return (self._mapped(values) / self.step()).round_().clamp_(*self.codes())

    def _mapped(self, x: Tensor) -> Tensor:
        """What is rounded to multiples of the step."""
        return x

    def _require_bits(self) -> int:
        if not self._bits:
            raise RuntimeError("the bit-width is still being learned: call fix_bits first")
        return self._bits

    def _reset_mapping(self, q_m: float) -> None:
        """Start the mapping (1) anew for the range ``q_m``."""

    def _after_load(self, prefix: str) -> None:
        bits = int(self.fixed_bits)
        if bits and not 2 <= bits <= 32:
            raise CheckpointError(f"{prefix}fixed_bits is {bits}, not within [2, 32]: the checkpoint is damaged")
        self._follow_fixed_bits()

    def _follow_fixed_bits(self) -> None:
        self._bits = int(self.fixed_bits)
        self.log_levels.requires_grad_(not self._bits)
        if self._bits:
            self.log_levels.grad = None  # else an optimizer would go on moving it

    def extra_repr(self) -> str:
        bits = f"bits={self._bits}" if self._bits else f"bits={self.min_bits}..{self.max_bits}"
        return f"{bits}, symmetric={self.symmetric}, power_of_two={self.power_of_two}"


class Quantizers:
    """What every step asks of all quantizers, in a few operators instead of a few for each.

    Args:
        quantizers: in the order of the results.
    """

    def __init__(self, quantizers: Iterable[LearnedQuantizer]) -> None:
        self._quantizers = tuple(quantizers)
        self._symmetric = torch.tensor([float(q.symmetric) for q in self._quantizers])
        self._min_bits = torch.tensor([float(q.min_bits) for q in self._quantizers])
        self._max_bits = torch.tensor([float(q.max_bits) for q in self._quantizers])
        self._max_log_range = torch.tensor([q.max_range for q in self._quantizers], dtype=torch.float64).log().float()
        self._power_of_two = torch.tensor([q.power_of_two for q in self._quantizers])

    def continuous_bits(self) -> Tensor:
        """[quantizers] bit-widths in effect, differentiable; eq. (3) or (4) without the ceiling.

        With ``power_of_two`` the value is the restricted bit-width, the gradient that of the continuous one.
        """
        if not self._quantizers:
            return torch.zeros(0)
        bits = functional.bits_of(self._joined("log_levels").exp(), self._symmetric)
        if self._power_of_two.any():
            limits = self._min_bits.to(bits.device), self._max_bits.to(bits.device)
            restricted = functional.nearest_power_of_two(bits.detach(), *limits)
            bits = torch.where(self._power_of_two.to(bits.device), straight_through(restricted, bits), bits)
        fixed = torch.tensor([float(q.bits or 0) for q in self._quantizers], device=bits.device)
        return torch.where(fixed > 0, fixed, bits)

    @torch.no_grad()
    def project_(self, margin: float = 0.0) -> None:
        """Move ranges, exponents and levels into their limits.

        Args:
            margin: bits that learned widths stay above their least, within their greatest; where they are restricted
                to powers of two, before that.
        """
        if not self._quantizers:
            return
        log_levels = self._joined("log_levels")
        least_levels, most_levels = (
            unsigned_levels(bits - self._symmetric).log().to(log_levels.device)
            for bits in (self._min_bits + margin, self._max_bits)
        )
        log_levels = log_levels.maximum(least_levels).minimum(most_levels)
        self._write("log_levels", log_levels, where=[q.bits is None for q in self._quantizers])
        levels = unsigned_levels(self.continuous_bits() - self._symmetric.to(log_levels.device))
        log_unit = functional.normal_range(levels).log()
        # twice q_s keeps the mapped range well away from zero
        least = (2 * self._joined("small_value")).clamp_min(MIN_RANGE).log()
        greatest = self._max_log_range.to(least.device)
        self._write("log_scale", self._joined("log_scale").maximum(least - log_unit).minimum(greatest - log_unit))
        limits = math.log(functional.MIN_EXPONENT), math.log(functional.MAX_EXPONENT)
        self._write("log_exponent", self._joined("log_exponent").clamp(*limits))
        self._write("low_share", self._joined("low_share").clamp(0, 1))

    def _joined(self, name: str) -> Tensor:
        """In float32 at least, as `exp_scalar`."""
        values = [getattr(quantizer, name) for quantizer in self._quantizers]
        absent = torch.zeros_like(self._quantizers[0].log_scale, requires_grad=False)
        joined = torch.stack([absent if value is None else value for value in values])
        return joined.to(torch.promote_types(joined.dtype, torch.float32))

    def _write(self, name: str, values: Tensor, where: Sequence[bool] | None = None) -> None:
        """Set the tensors of a name, of those that have it and of those chosen."""
        chosen = where or [True] * len(self._quantizers)
        pairs = [
            (tensor, value)
            for quantizer, value, wanted in zip(self._quantizers, values.unbind(), chosen, strict=True)
            if wanted and (tensor := getattr(quantizer, name)) is not None
        ]
        if pairs:
            torch._foreach_copy_([tensor for tensor, _ in pairs], [value for _, value in pairs])


def exp_scalar(log_value: Tensor) -> Tensor:
    """In float32 at least: a step rounded to half precision would not fit its range."""
    return log_value.to(torch.promote_types(log_value.dtype, torch.float32)).exp()


def straight_through(value: Tensor, differentiable: Tensor) -> Tensor:
    """``value`` exactly, with the gradient of ``differentiable``."""
    return value.detach() + (differentiable - differentiable.detach())
