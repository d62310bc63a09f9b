# SPDX-License-Identifier: Apache-2.0
"""The element-wise work of the quantizers: one loop over memory if it is compiled, pieces in the cache if not."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Elements at a time on a CPU without a compiler: what one operator leaves is in the cache when the next one reads it.
_PIECE = 1 << 17

# How many layouts of tensors a loop is compiled for. A network has some five; beyond torch's own limit of eight, which
# a few networks in one process exceed, it would run uncompiled.
_LAYOUTS = 64

# Stands for log(0) where it is multiplied by an exact zero: finite, and below the log of any float64.
LOG_ZERO = -1000.0


class Loop:
    """An element-wise function, run as one compiled loop or eagerly.

    Compiling takes seconds, once per machine and data type. Where it fails, because there is no compiler say, all
    loops run eagerly from then on, with one warning.

    Args:
        function: takes a number of tensors of the same shape and then others. It returns a tensor of that shape, or
            such a tensor and further ones that are sums over the first dimension.
        elementwise: how many of its arguments have the shape of the result; 0 if none has.

    Attributes:
        compiler_works: False once compiling has failed.
    """

    compiler_works = True

    def __init__(self, function: Callable[..., Any], elementwise: int) -> None:
        self._function = function
        self._elementwise = elementwise
        # Else the size of the first tensor decides, for good and for later processes too, whether threads are used.
        self._compiled = torch.compile(  # type: ignore[call-overload]  # the overloads leave recompile_limit out
            function, dynamic=True, recompile_limit=_LAYOUTS, options={"cpp.dynamic_threads": True}
        )

    def __call__(self, *args: Any, compiled: bool) -> Any:
        if torch.compiler.is_compiling():
            return self._function(*args)  # a part of what is being compiled
        if compiled and Loop.compiler_works and args[0].numel() > 1:
            try:
                return self._compiled(*args)
            except Exception as error:
                Loop.compiler_works = False
                logger.warning(
                    "torch.compile does not work here (%s), so quantizers run without it: a training step takes up to "
                    "one and a half times as long.",
                    str(error).strip().partition("\n")[0],
                )
        return self._eagerly(*args) if args[0].device.type == "cpu" else self._function(*args)

    def _eagerly(self, *args: Any) -> Any:
        tensors, others = args[: self._elementwise], args[self._elementwise :]
        if not tensors or tensors[0].numel() <= _PIECE:
            return self._function(*args)
        first = tensors[0]
        rows = max(1, _PIECE * len(first) // first.numel())
        result = torch.empty_like(first)
        sums: list[Tensor] = []
        for start in range(0, len(first), rows):
            piece = self._function(*(tensor[start : start + rows] for tensor in tensors), *others)
            value, *totals = piece if isinstance(piece, tuple) else (piece,)
            result[start : start + rows] = value
            sums = [a + b for a, b in zip(sums, totals, strict=True)] if sums else totals
        return (result, *sums) if sums else result


def _clamp_and_round(x: Tensor, grid: Tensor) -> Tensor:
    """``grid``: d, low, high."""
    d, low, high = grid.unbind()
    return ((x.to(grid.dtype).clamp(low, high) / d).round() * d).to(x.dtype)


def _clamp_and_round_backward(x: Tensor, grad: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Towards x, and [3] towards d (5), low and high (6)."""
    d, low, high = grid.unbind()
    values, upstream = x.to(grid.dtype), grad.to(grid.dtype)
    position = values.clamp(low, high) / d
    below, above = upstream * (values < low), upstream * (values > high)
    of_step = (upstream * (position.round() - position)).sum()
    return (upstream - below - above).to(x.dtype), torch.stack([of_step, below.sum(), above.sum()])


def _map_and_round(x: Tensor, grid: Tensor, gate: Tensor | None, curved: bool) -> Tensor:
    """``grid``: d, q_m, t, q_s; ``curved``: whether t is other than 1."""
    d, q_m, t, q_s = grid.unbind()
    values = x.to(grid.dtype) if gate is None else x.to(grid.dtype) * gate
    mapped = values.abs().clamp(q_s, q_m) - q_s
    if curved:
        mapped = (mapped.log() * t).exp()  # exp(t * log 0) is exactly 0, and cheaper than pow
    return ((mapped / d).round() * d).copysign(values).to(x.dtype)


def _map_and_round_backward(
    x: Tensor, grad: Tensor, grid: Tensor, floor: Tensor, gate: Tensor | None, curved: bool
) -> tuple[Tensor, Tensor]:
    """Towards x, and [3] towards d (5), q_m (6) and t (7); ``floor``: bounds log(|x| - q_s) from below in the slope."""
    d, q_m, t, q_s = grid.unbind()
    values = x.to(grid.dtype) if gate is None else x.to(grid.dtype) * gate
    magnitude, upstream = values.abs(), grad.to(grid.dtype)
    mapped = magnitude.clamp(q_s, q_m) - q_s
    towards = upstream * values.sign()
    of_range = (towards * (magnitude > q_m)).sum()
    passed = upstream * ((magnitude >= q_s) & (magnitude <= q_m))
    of_exponent = torch.zeros_like(of_range)
    if curved:
        log_mapped = mapped.log().clamp(min=LOG_ZERO)
        mapped = (log_mapped * t).exp()
        of_exponent = (towards * mapped * log_mapped).sum()
        passed = passed * (log_mapped.clamp(min=floor) * (t - 1)).exp() * t
        of_range = of_range * t * (q_m - q_s) ** (t - 1)
    position = mapped / d
    of_step = (towards * (position.round() - position)).sum()
    return (passed if gate is None else passed * gate).to(x.dtype), torch.stack([of_step, of_range, of_exponent])


def _column_products(x: Tensor, y: Tensor) -> Tensor:
    """[rows, columns] twice -> [columns] inner products of the columns."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * y.to(dtype)).sum(dim=0)


clamp_and_round = Loop(_clamp_and_round, elementwise=1)
clamp_and_round_backward = Loop(_clamp_and_round_backward, elementwise=2)
map_and_round = Loop(_map_and_round, elementwise=1)
map_and_round_backward = Loop(_map_and_round_backward, elementwise=2)
column_products = Loop(_column_products, elementwise=0)
