# SPDX-License-Identifier: Apache-2.0
"""The learned quantizer of DJPQ as functions of its scalars.

Equation and algorithm numbers are those of Wang, Lu, Blankevoort, "Differentiable Joint Pruning and
Quantization for Hardware Efficiency" (2020). Symbols: ``d`` step size, ``q_m`` largest value that is mapped,
``q_s`` smallest one, ``t`` exponent of the mapping.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_EXPONENT = 0.3
MAX_EXPONENT = 2.0

# The share of (q_m - q_s) below which the slope of the mapping towards x stops growing, see learned_quantize.
SLOPE_FLOOR = 0.01

# Stands for log(0) where it is multiplied by an exact zero: finite, and below the log of any float64.
_LOG_ZERO = -1000.0


def learned_quantize(
    x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float = 0.0, signed: bool = True
) -> Tensor:
    """Quantize ``x`` of any shape by eq. (2), with the gradients (5)-(7) towards ``d``, ``q_m`` and ``t``.

    The paper leaves the gradient towards ``x`` open. Here rounding passes it straight through, so it is the
    slope of the mapping (1), ``t * (|x| - q_s)^(t - 1)``, for ``q_s <= |x| <= q_m`` and zero elsewhere. For
    ``t < 1`` that slope grows without bound towards ``q_s``: ``|x| - q_s`` is taken as at least
    ``SLOPE_FLOOR * (q_m - q_s)`` there, which keeps it within ``t * 100^(1 - t)`` (at most 7.6, for t >= 0.3)
    times the mean slope of the mapping, ``(q_m - q_s)^(t - 1)``.

    Half-precision inputs are computed in float32, and the result has the dtype of ``x``. Gradients towards
    the scalars are summed in float32 (float64 for a float64 ``x``). Not differentiable twice.

    Args:
        x: values to quantize.
        d: step size, scalar tensor, positive.
        q_m: largest value mapped, scalar tensor, above ``q_s``.
        t: exponent, scalar tensor, in [0.3, 2]; None for exactly 1, which skips the work.
        q_s: values of ``x`` below it become zero; a float 0 skips the work.
        signed: False maps negative ``x`` to zero, without any gradient.
    """
    result: Tensor = _LearnedQuantize.apply(x, d, q_m, t, q_s, signed)
    return result


def map_values(x: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float, signed: bool) -> Tensor:
    """The non-linear mapping of eq. (1), without a gradient of its own."""
    if signed and t is None and _is_zero(q_s):
        return torch.maximum(torch.minimum(x, q_m), -q_m)
    magnitude = (x.abs() if signed else x.clamp_min(0)).clamp_max_(q_m)
    if not _is_zero(q_s):
        magnitude = magnitude.sub_(q_s).clamp_min_(0)
    if t is not None:
        # exp(t * log 0) is exactly 0, and cheaper than pow.
        magnitude = magnitude.log_().mul_(t).exp_()
    return magnitude.copysign_(x) if signed else magnitude


def mapped_range(q_m: Tensor, t: Tensor | None, q_s: Tensor | float = 0.0) -> Tensor:
    """``(q_m - q_s)^t``, the largest value of the mapping (1); differentiable."""
    width = q_m if _is_zero(q_s) else _width(q_m, q_s)
    return width if t is None else width**t


def continuous_bits(d: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float = 0.0, signed: bool = True) -> Tensor:
    """Bit-width of the grid, differentiable: eqs. (3) and (4) without the ceiling, which has no gradient.

    Signed: ``log2((q_m - q_s)^t / d + 1) + 1``, eq. (3). Unsigned: ``log2((q_m - q_s)^t / d + 1)``, which
    deviates from eq. (4): as printed, the grid ``0, d, ..., 2^b * d`` has 2^b + 1 values and needs b + 1
    bits. Here b bits hold ``2^b - 1`` positive levels and zero.
    """
    bits = torch.log2(mapped_range(q_m, t, q_s) / d + 1)
    return bits + 1 if signed else bits


def step_for_bits(
    bits: int | Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float = 0.0, signed: bool = True
) -> Tensor:
    """Step size of a grid of ``bits`` bits over the range of ``q_m``: the last line of Algorithm 2.

    Signed: ``(q_m - q_s)^t / (2^(bits - 1) - 1)``. Unsigned: ``(q_m - q_s)^t / (2^bits - 1)``, one level
    fewer than printed, for the reason given at `continuous_bits`, whose inverse this is.
    """
    magnitude_bits = bits - 1 if signed else bits
    levels = torch.exp2(magnitude_bits) - 1 if isinstance(magnitude_bits, Tensor) else 2**magnitude_bits - 1
    return mapped_range(q_m, t, q_s) / levels


def nearest_power_of_two(bits: Tensor, lowest: int = 2, highest: int = 32) -> Tensor:
    """``2^round(log2(bits))`` out of {2, 4, 8, 16, 32} and within [lowest, highest]: Algorithm 2.

    The algorithm as printed rounds the logarithm down; the text around it says "nearest", as is done here.
    """
    least = max(1, math.ceil(math.log2(lowest)))
    most = min(5, math.floor(math.log2(highest)))
    if least > most:
        raise ValueError(f"no bit-width of 2, 4, 8, 16, 32 lies within [{lowest}, {highest}]")
    return torch.exp2(torch.log2(bits).round().clamp(least, most))


def _is_zero(q_s: Tensor | float) -> bool:
    return not isinstance(q_s, Tensor) and q_s == 0


def _width(q_m: Tensor, q_s: Tensor | float) -> Tensor:
    return (q_m - q_s).clamp_min(torch.finfo(q_m.dtype).tiny)


def _outside(x: Tensor, q_m: Tensor, q_s: Tensor | float, signed: bool) -> tuple[Tensor, Tensor]:
    """Where x lies, -1 below ``q_s``, 0 inside, 1 beyond ``q_m``; and its sign where it is beyond, else 0."""
    magnitude = x.abs() if signed else x
    outside = (magnitude - magnitude.clamp_max(q_m).clamp_min_(q_s)).sign_()
    direction = outside.clamp_min(0)
    return outside, direction.copysign_(x) if signed else direction


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) else value


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the elementwise product."""
    if a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1))
    return (a * b).sum()


class _LearnedQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float, signed: bool
    ) -> Tensor:
        dtype = _working_dtype(x)
        step, largest, exponent, smallest = (_cast(value, dtype) for value in (d, q_m, t, q_s))
        mapped = map_values(x.to(dtype), largest, exponent, smallest, signed)
        if exponent is None:
            # Only clamped: cheaper to compute again than to keep.
            kept = None
            result = mapped.div_(step).round_().mul_(step)
        else:
            kept = mapped
            result = (mapped / step).round_().mul_(step)
        # The operator it feeds keeps the result anyway. In half precision it has lost the rounding error.
        exact = result if x.dtype == dtype else None
        ctx.save_for_backward(x, d, q_m, t, q_s if isinstance(q_s, Tensor) else None, kept, exact)
        ctx.q_s = None if isinstance(q_s, Tensor) else q_s
        ctx.signed = signed
        return result.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, d, q_m, t, q_s, mapped, result = ctx.saved_tensors
        if q_s is None:
            q_s = ctx.q_s
        needs_x, needs_d, needs_q_m, needs_t = ctx.needs_input_grad[:4]
        dtype = _working_dtype(x)
        values, grad = x.to(dtype), grads[0].to(dtype)
        step, largest, exponent, smallest = (_cast(value, dtype) for value in (d, q_m, t, q_s))
        if mapped is None:
            mapped = map_values(values, largest, exponent, smallest, ctx.signed)
        grad_x = grad_d = grad_q_m = grad_t = None

        if needs_d:  # (5)
            if result is None:
                result = (mapped / step).round_().mul_(step)
            grad_d = (_inner(grad, result - mapped) / step).to(d.dtype)
        if needs_q_m or needs_x:
            # Floats instead of masks: on CPUs, operations on bool tensors take two to four times longer.
            if exponent is None and _is_zero(smallest):
                outside = direction = (values - mapped).sign_()
                if not ctx.signed:
                    direction = outside.clamp_min(0)
            else:
                outside, direction = _outside(values, largest, smallest, ctx.signed)
        if needs_q_m:  # (6)
            grad_q_m = _inner(grad, direction)
            if exponent is not None:
                grad_q_m = grad_q_m * exponent * _width(largest, smallest) ** (exponent - 1)
            grad_q_m = grad_q_m.to(q_m.dtype)
        if exponent is not None and (needs_t or needs_x):
            log_magnitude = mapped.abs().log_().div_(exponent).clamp_min_(_LOG_ZERO)
        if needs_t:  # (7)
            grad_t = _inner(grad, mapped * log_magnitude).to(t.dtype)
        if needs_x:
            grad_x = torch.addcmul(grad, grad, outside.abs_(), value=-1)
            if exponent is not None:
                floor = _width(largest, smallest).log() + math.log(SLOPE_FLOOR)
                # Only for t < 1 is there anything to bound; for t > 1 the slope goes to zero by itself.
                floor = torch.where(exponent < 1, floor, torch.full_like(floor, _LOG_ZERO))
                slope = log_magnitude.clamp_min_(floor).mul_(exponent - 1).exp_().mul_(exponent)
                grad_x = grad_x.mul_(slope)
            grad_x = grad_x.to(x.dtype)
        return grad_x, grad_d, grad_q_m, grad_t, None, None
