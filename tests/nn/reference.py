# SPDX-License-Identifier: Apache-2.0
"""Equations of Wang, Lu, Blankevoort (2020) in float64 numpy, element by element as printed."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _by_region(x: Array, q_m: float, q_s: float, inside: Callable[[float], float], beyond: float) -> Array:
    """sign(x) times 0 below q_s, inside(|x|) up to q_m, ``beyond`` above."""
    result = np.zeros_like(x)
    for position, value in np.ndenumerate(x):
        magnitude = abs(value)
        if magnitude >= q_s:
            result[position] = np.sign(value) * (inside(magnitude) if magnitude <= q_m else beyond)
    return result


def _power(base: float, exponent: float) -> float:
    return float(base**exponent) if base > 0 else 0.0


def quantized(x: Array, d: float, q_m: float, t: float, q_s: float) -> Array:
    """Eq. (2)."""
    return _by_region(x, q_m, q_s, lambda a: d * np.rint(_power(a - q_s, t) / d), d * np.rint((q_m - q_s) ** t / d))


def gradient_d(x: Array, d: float, q_m: float, t: float, q_s: float) -> Array:
    """Eq. (5)."""

    def rounding_error(mapped: float) -> float:
        return float(np.rint(mapped / d) - mapped / d)

    return _by_region(x, q_m, q_s, lambda a: rounding_error(_power(a - q_s, t)), rounding_error((q_m - q_s) ** t))


def gradient_q_m(x: Array, d: float, q_m: float, t: float, q_s: float) -> Array:
    """Eq. (6)."""
    return _by_region(x, q_m, q_s, lambda a: 0.0, t * (q_m - q_s) ** (t - 1))


def gradient_t(x: Array, d: float, q_m: float, t: float, q_s: float) -> Array:
    """Eq. (7); its limit, 0, at |x| = q_s."""
    return _by_region(
        x,
        q_m,
        q_s,
        lambda a: _power(a - q_s, t) * np.log(a - q_s) if a > q_s else 0.0,
        (q_m - q_s) ** t * np.log(q_m - q_s),
    )


def slope_x(x: Array, q_m: float, t: float, q_s: float, floor: float) -> Array:
    """d x~ / d x of eq. (1) within [q_s, q_m]; |x| - q_s at least ``floor`` for t < 1."""

    def slope(magnitude: float) -> float:
        width = magnitude - q_s
        if t < 1:
            width = max(width, floor)
        return float(t * width ** (t - 1)) if width > 0 or t == 1 else 0.0

    result = np.zeros_like(x)
    for position, value in np.ndenumerate(np.abs(x)):
        if q_s <= value <= q_m:
            result[position] = slope(float(value))
    return result
