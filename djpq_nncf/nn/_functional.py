# SPDX-License-Identifier: Apache-2.0
"""The learned quantizer of DJPQ as functions of its scalars.

Equation and algorithm numbers are those of Wang, Lu, Blankevoort, "Differentiable Joint Pruning and
Quantization for Hardware Efficiency" (2020). Symbols: ``d`` step size, ``q_m`` largest value that is mapped,
``q_s`` smallest one, ``t`` exponent of the mapping.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_EXPONENT = 0.3
MAX_EXPONENT = 2.0

# The share of (q_m - q_s) below which the slope of the mapping towards x stops growing, see learned_quantize.
SLOPE_FLOOR = 0.01

# Elements at a time on a CPU: what a step needs of them stays in the cache between its operators.
_PIECE = 1 << 17

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


def map_values(
    x: Tensor,
    q_m: Tensor | float,
    t: Tensor | float | None,
    q_s: Tensor | float,
    signed: bool,
    out: Tensor | None = None,
) -> Tensor:
    """The non-linear mapping of eq. (1), without a gradient of its own."""
    if signed and t is None and _is_zero(q_s):
        return torch.clamp(x, -q_m, q_m, out=out)
    magnitude = torch.abs(x, out=out) if signed else torch.clamp(x, min=0, out=out)
    magnitude = magnitude.clamp_(max=q_m)
    if not _is_zero(q_s):
        magnitude = magnitude.sub_(q_s).clamp_(min=0)
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


def nearest_power_of_two(bits: Tensor, lowest: Tensor | int = 2, highest: Tensor | int = 32) -> Tensor:
    """``2^round(log2(bits))`` out of {2, 4, 8, 16, 32} and within [lowest, highest], elementwise: Algorithm 2.

    The algorithm as printed rounds the logarithm down; the text around it says "nearest", as is done here.

    Raises:
        ValueError: the limits, given as numbers, leave none.
    """
    if isinstance(lowest, int) and isinstance(highest, int):
        least, most = max(1, math.ceil(math.log2(lowest))), min(5, math.floor(math.log2(highest)))
        if least > most:
            raise ValueError(f"no bit-width of 2, 4, 8, 16, 32 lies within [{lowest}, {highest}]")
        return torch.exp2(torch.log2(bits).round().clamp(least, most))
    limits = (torch.as_tensor(limit, device=bits.device) for limit in (lowest, highest))
    low, high = (limit.log2() for limit in limits)
    return torch.exp2(torch.log2(bits).round().clamp(low.ceil().clamp_min(1), high.floor().clamp_max(5)))


def _is_zero(q_s: Tensor | float) -> bool:
    return not isinstance(q_s, Tensor) and q_s == 0


def _width(q_m: Tensor, q_s: Tensor | float) -> Tensor:
    return (q_m - q_s).clamp_min(torch.finfo(q_m.dtype).tiny)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the elementwise product."""
    if a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1))
    return (a * b).sum()


def _in_pieces(x: Tensor) -> bool:
    """Whether to work piece by piece: a piece stays in the cache of a CPU, a compiler makes one loop of all."""
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x.device.type == "cpu" and dense and x.dim() > 0 and not torch.compiler.is_compiling()


def _pieces(x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Stretches of tensors of the same shape, in the order in which ``x`` lies in memory."""
    if not _in_pieces(x):
        yield x, *others
        return
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    flat = [
        None if tensor is None else tensor.contiguous(memory_format=layout).as_strided((tensor.numel(),), (1,))
        for tensor in (x, *others)
    ]
    for start in range(0, x.numel(), _PIECE):
        yield tuple(None if tensor is None else tensor[start : start + _PIECE] for tensor in flat)


class _Scalars:
    """Step, range, exponent and threshold in the type to compute in: numbers where the tensors lie on a CPU."""

    def __init__(self, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float) -> None:
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        d, q_m, t, q_s = (v.to(self.dtype) if isinstance(v, Tensor) else v for v in (d, q_m, t, q_s))
        convert = Tensor.item if _in_pieces(x) else lambda value: value
        width = q_m if _is_zero(q_s) else _width(q_m, q_s)
        # Only for t < 1 is there anything to bound; for t > 1 the slope goes to zero by itself.
        floor = None if t is None else torch.where(t < 1, width.log() + math.log(SLOPE_FLOOR), _LOG_ZERO)
        self.step, self.largest, self.exponent, self.smallest, self.floor = (
            convert(value) if isinstance(value, Tensor) else value for value in (d, q_m, t, q_s, floor)
        )
        self.slope_at_range = None if t is None else t * width ** (t - 1)

    @property
    def only_clamps(self) -> bool:
        return self.exponent is None and _is_zero(self.smallest)

    def mapping(self, signed: bool) -> tuple[Any, ...]:
        return self.largest, self.exponent, self.smallest, signed

    def rounded(self, mapped: Tensor) -> Tensor:
        """In place."""
        return mapped.div_(self.step).round_().mul_(self.step)


class _LearnedQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float, signed: bool
    ) -> Tensor:
        scalars = _Scalars(x, d, q_m, t, q_s)
        result = torch.empty_like(x)
        for source, target in _pieces(x, result):
            if x.dtype == scalars.dtype:
                scalars.rounded(map_values(source, *scalars.mapping(signed), out=target))
            else:
                target.copy_(scalars.rounded(map_values(source.to(scalars.dtype), *scalars.mapping(signed))))
        # The operator it feeds keeps the result anyway. In half precision it has lost the rounding error.
        exact = result if x.dtype == scalars.dtype else None
        ctx.save_for_backward(x, d, q_m, t, q_s if isinstance(q_s, Tensor) else None, exact)
        ctx.q_s = None if isinstance(q_s, Tensor) else q_s
        ctx.signed = signed
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, d, q_m, t, q_s, result = ctx.saved_tensors
        scalars = _Scalars(x, d, q_m, t, ctx.q_s if q_s is None else q_s)
        gradients = _gradients_of_clamping if scalars.only_clamps else _gradients_of_mapping
        grad_x = torch.empty_like(x)
        sums = []
        space: list[Tensor] = []
        for source, grad, exact, target in _pieces(x, grads[0], result, grad_x):
            values, upstream = source.to(scalars.dtype), grad.to(scalars.dtype)
            if exact is None:
                exact = scalars.rounded(map_values(values, *scalars.mapping(ctx.signed)))
            if not space or space[0].shape != values.shape:
                # The same memory for every piece: allocating anew costs more than most operators.
                space = [torch.empty_like(values) for _ in range(5)]
            out = target if target.dtype == scalars.dtype else space[4]
            products = gradients(values, upstream, exact, scalars, ctx.signed, out, space)
            if out is not target:
                target.copy_(out)
            sums.append(torch.stack(products))
        grad_d, grad_q_m, *grad_t = torch.stack(sums).sum(dim=0).unbind()
        if scalars.slope_at_range is not None:
            grad_q_m = grad_q_m * scalars.slope_at_range
        return (
            grad_x,
            (grad_d / scalars.step).to(d.dtype),
            grad_q_m.to(q_m.dtype),
            grad_t[0].to(t.dtype) if grad_t else None,
            None,
            None,
        )


def _gradients_of_clamping(
    x: Tensor, grad: Tensor, result: Tensor, scalars: _Scalars, signed: bool, out: Tensor, space: list[Tensor]
) -> list[Tensor]:
    """Writes that towards x into ``out``; returns the sums towards d (5), times d, and q_m (6): t = 1 and q_s = 0.

    Floats instead of masks: on CPUs, operations on bool tensors take two to four times longer.
    """
    mapped, other, *_ = space
    map_values(x, *scalars.mapping(signed), out=mapped)
    of_step = _inner(grad, torch.sub(result, mapped, out=other))
    outside = torch.sub(x, mapped, out=mapped).sign_()
    of_range = _inner(grad, outside if signed else torch.clamp(outside, min=0, out=other))
    torch.addcmul(grad, grad, outside.abs_(), value=-1, out=out)
    return [of_step, of_range]


def _gradients_of_mapping(
    x: Tensor, grad: Tensor, result: Tensor, scalars: _Scalars, signed: bool, out: Tensor, space: list[Tensor]
) -> list[Tensor]:
    """Writes that towards x into ``out``; returns the sums towards d (5), times d, q_m (6), but for a factor, t (7)."""
    magnitude, inside, towards, other, _ = space
    torch.abs(x, out=magnitude) if signed else torch.clamp(x, min=0, out=magnitude)
    torch.clamp(magnitude, scalars.smallest, scalars.largest, out=inside)
    outside = magnitude.sub_(inside).sign_()
    towards = torch.sign(x, out=towards).mul_(grad) if signed else grad
    of_range = _inner(towards, torch.clamp(outside, min=0, out=other))
    passed = torch.addcmul(grad, grad, outside.abs_(), value=-1, out=magnitude)
    mapped = inside.sub_(scalars.smallest)
    if scalars.exponent is None:
        out.copy_(passed)
        return [_inner(towards, torch.abs(result, out=other).sub_(mapped)), of_range]
    log_magnitude = mapped.log_().clamp_(min=_LOG_ZERO)
    mapped = torch.mul(log_magnitude, scalars.exponent, out=other).exp_()
    # |result| - mapped, without a buffer of its own
    of_step = _inner(towards, torch.abs(result, out=out).sub_(mapped))
    of_exponent = _inner(towards, mapped.mul_(log_magnitude))
    slope = log_magnitude.clamp_(min=scalars.floor).mul_(scalars.exponent - 1).exp_().mul_(scalars.exponent)
    torch.mul(passed, slope, out=out)
    return [of_step, of_range, of_exponent]
