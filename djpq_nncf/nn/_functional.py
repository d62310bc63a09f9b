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

from djpq_nncf.nn import _loops as loops

MIN_EXPONENT = 0.3
MAX_EXPONENT = 2.0

# The share of (q_m - q_s) below which the slope of the mapping towards x stops growing, see quantize_weight.
SLOPE_FLOOR = 0.01


def quantize_activation(x: Tensor, d: Tensor, low: Tensor, high: Tensor, *, compiled: bool = False) -> Tensor:
    """Clamp ``x`` of any shape to [low, high] and round it to multiples of ``d``: eq. (2) with t = 1 and q_s = 0.

    The gradient towards ``d`` is (5), that towards a limit is (6): what lies beyond it counts. The paper leaves the
    gradient towards ``x`` open: rounding passes it straight through, clamping stops it.

    Half-precision inputs are computed in float32, and the result has the dtype of ``x``. Gradients towards
    the scalars are summed in float32 (float64 for a float64 ``x``). Not differentiable twice.

    Args:
        x: values to quantize.
        d: step size, scalar tensor, positive.
        low: smallest value, scalar tensor, at most 0: 0 for an unsigned grid, ``-high - d`` for a symmetric one.
        high: largest value, scalar tensor, positive.
        compiled: let torch.compile make one loop of it, if it can.
    """
    result: Tensor = _QuantizeActivation.apply(x, d, low, high, compiled)
    return result


def quantize_weight(
    weight: Tensor,
    d: Tensor,
    q_m: Tensor,
    t: Tensor | None,
    q_s: Tensor,
    gate: Tensor | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Quantize ``weight * gate`` by eq. (2), with the gradients (5)-(7) towards ``d``, ``q_m`` and ``t``.

    The paper leaves the gradient towards the weight open. Here rounding passes it straight through, so it is the
    slope of the mapping (1), ``t * (|x| - q_s)^(t - 1)``, for ``q_s <= |x| <= q_m`` and zero elsewhere. For
    ``t < 1`` that slope grows without bound towards ``q_s``: ``|x| - q_s`` is taken as at least
    ``SLOPE_FLOOR * (q_m - q_s)`` there, which keeps it within ``t * 100^(1 - t)`` (at most 7.6, for t >= 0.3)
    times the mean slope of the mapping, ``(q_m - q_s)^(t - 1)``.

    Data types are treated as in `quantize_activation`. Not differentiable twice.

    Args:
        weight: values to quantize, of any shape.
        d: step size, scalar tensor, positive.
        q_m: largest value mapped, scalar tensor, above ``q_s``.
        t: exponent, scalar tensor, in [0.3, 2]; None for exactly 1, which skips the work.
        q_s: scalar tensor, values below it become zero; positive if there is a gate.
        gate: factors on the weight, broadcast to its shape; None for 1.
        compiled: let torch.compile make one loop of it, if it can.
    """
    if gate is None:
        result: Tensor = _QuantizeWeight.apply(weight, d, q_m, t, q_s, None, compiled)
        return result
    if gate.dim() >= weight.dim() or not weight.is_contiguous():
        # a factor that changes along the first dimension, or a layout that is not rows
        return quantize_weight(weight * gate.to(weight.dtype), d, q_m, t, q_s, compiled=compiled)
    row = gate.expand(weight.shape[1:]).reshape(-1)
    result = _QuantizeWeight.apply(weight.flatten(1), d, q_m, t, q_s, row, compiled)
    return result.view_as(weight)


def map_values(x: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float) -> Tensor:
    """The non-linear mapping of eq. (1), without a gradient of its own."""
    magnitude = (x.abs().clamp(max=q_m) - q_s).clamp(min=0)
    if t is not None:
        # exp(t * log 0) is exactly 0, and cheaper than pow.
        magnitude = (magnitude.log() * t).exp()
    return magnitude.copysign(x)


def mapped_range(q_m: Tensor, t: Tensor | None, q_s: Tensor | float = 0.0) -> Tensor:
    """``(q_m - q_s)^t``, the largest value of the mapping (1); differentiable."""
    width = q_m if _is_zero(q_s) else _width(q_m, q_s)
    return width if t is None else width**t


def bits_of(levels: Tensor, signed: bool | Tensor) -> Tensor:
    """Bit-width of a grid with ``(q_m - q_s)^t / d`` positive levels: eqs. (3) and (4), differentiable.

    That is without the ceiling, which has no gradient. Signed: ``log2(levels + 1) + 1``, eq. (3). Unsigned:
    ``log2(levels + 1)``, which deviates from eq. (4): as printed, the grid ``0, d, ..., 2^b * d`` has 2^b + 1 values
    and needs b + 1 bits. Here b bits hold ``2^b - 1`` positive levels and zero. Elementwise.
    """
    return torch.log2(levels + 1) + (signed.to(levels.device) if isinstance(signed, Tensor) else int(signed))


def normal_range(levels: Tensor) -> Tensor:
    """Range in standard deviations at which so many positive levels round normal values with least squared error.

    A fit, within 4 % from 1 level (2 bits with a sign) to 31, and 8 % above at 127. Differentiable, elementwise.
    """
    return 1.2 + 0.62 * levels.log()


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


def _grid(x: Tensor, *scalars: Tensor) -> Tensor:
    """One tensor of all scalars, in the type to compute in."""
    return torch.stack(scalars).to(torch.promote_types(x.dtype, torch.float32))


def _in_memory_order(x: Tensor, like: Tensor) -> Tensor:
    """``x`` without dimensions, in the order in which ``like`` lies in memory; as it is where that has gaps.

    Under torch.compile it stays as it is: the compiler fuses the work itself, and chooses layouts other than those that
    the trace shows.
    """
    if torch.compiler.is_compiling():
        return x.detach()
    for layout in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        if like.dim() == _DIMENSIONS.get(layout, like.dim()) and like.is_contiguous(memory_format=layout):
            return x.detach().contiguous(memory_format=layout).as_strided((x.numel(),), (1,))
    return x.detach()


_DIMENSIONS = {torch.channels_last: 4, torch.channels_last_3d: 5}


def _shaped(result: Tensor, like: Tensor) -> Tensor:
    """Undo `_in_memory_order`."""
    return result if result.shape == like.shape else result.as_strided(like.shape, like.stride())


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, low: Tensor, high: Tensor, compiled: bool) -> Tensor:
        grid = _grid(x, d, low, high)
        ctx.save_for_backward(x, grid)
        ctx.compiled, ctx.dtype = compiled, d.dtype
        result: Tensor = loops.clamp_and_round(_in_memory_order(x, x), grid, compiled=compiled)
        return _shaped(result, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, grid = ctx.saved_tensors
        values, upstream = _in_memory_order(x, x), _in_memory_order(grads[0], x)
        grad_x, sums = loops.clamp_and_round_backward(values, upstream, grid, compiled=ctx.compiled)
        return _shaped(grad_x, x), *sums.to(ctx.dtype).unbind(), None


class _QuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        d: Tensor,
        q_m: Tensor,
        t: Tensor | None,
        q_s: Tensor,
        gate: Tensor | None,
        compiled: bool,
    ) -> Tensor:
        grid = _grid(x, d, q_m, torch.ones_like(q_m) if t is None else t, q_s)
        if gate is not None:
            gate = gate.detach().to(grid.dtype)
        ctx.save_for_backward(x, grid, gate)
        ctx.compiled, ctx.curved, ctx.dtype = compiled, t is not None, d.dtype
        values = x.detach() if gate is not None else _in_memory_order(x, x)
        result: Tensor = loops.map_and_round(values, grid, gate, ctx.curved, compiled=compiled)
        return _shaped(result, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, grid, gate = ctx.saved_tensors
        values, upstream = x.detach(), grads[0]
        if gate is None:
            values, upstream = _in_memory_order(x, x), _in_memory_order(upstream, x)
        _, q_m, t, q_s = grid.unbind()
        # Only for t < 1 is there anything to bound; for t > 1 the slope goes to zero by itself.
        floor = torch.where(t < 1, ((q_m - q_s) * SLOPE_FLOOR).log(), loops.LOG_ZERO)
        grad_x, sums = loops.map_and_round_backward(
            values, upstream, grid, floor, gate, ctx.curved, compiled=ctx.compiled
        )
        grad_gate = None
        if gate is not None and ctx.needs_input_grad[5]:
            products = loops.column_products(grad_x, values, compiled=ctx.compiled)
            # What a factor of zero makes lies below q_s, where there is no gradient.
            grad_gate = torch.where(gate == 0, 0, products / gate)
        of_step, of_range, of_exponent = sums.to(ctx.dtype).unbind()
        return _shaped(grad_x, x), of_step, of_range, of_exponent if ctx.curved else None, None, grad_gate, None
