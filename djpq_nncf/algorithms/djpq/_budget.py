# SPDX-License-Identifier: Apache-2.0
"""Deciding channels and integer bit-widths so that a BOPs budget holds exactly."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_EXCHANGES = 200


@dataclass(frozen=True)
class BitChoices:
    """Bit-widths to decide, and how a network's cost depends on them.

    Attributes:
        learned: [quantizers] continuous bit-widths.
        admissible: for each quantizer the integers to choose from, ascending.
        weight_index: [layers] which quantizer gives a layer its weight bits; ``len(learned)`` for none (32 bits).
        input_index: [layers, k] which quantizers give a layer its input bits (the widest counts); likewise.
    """

    learned: Floats
    admissible: Sequence[Sequence[int]]
    weight_index: Integers
    input_index: Integers

    def bops(self, macs: Floats, bits: Integers) -> float:
        """BOPs of the network with these bit-widths and these MACs per layer."""
        table = np.append(bits, 32)
        return float((macs * table[self.weight_index] * table[self.input_index].max(axis=1)).sum())


def choose_bits(choices: BitChoices, macs: Floats, budget: float, *, tolerance: float) -> Integers:
    """Integer bit-widths near the learned ones, of least estimated damage, that cost at most ``budget``.

    Where the learned bits were a compromise between loss and log BOPs, a quantizer's marginal damage per bit equals the
    share of the BOPs it is responsible for over its bits; quantization noise falls by 4 per bit. So moving a
    quantizer from b* to b is taken to cost share / b* * 4^(b* - b).

    Args:
        choices: what is to be decided.
        macs: [layers] MACs that remain.
        budget: BOPs that must not be exceeded; infinity rounds every width to the nearest.
        tolerance: the result should cost at least ``(1 - tolerance) * budget``, if the widths allow it.

    Returns:
        [quantizers] bit-widths. They exceed the budget only where all are at their least.
    """
    bits = np.array(
        [min(allowed, key=lambda b: abs(b - learned)) for learned, allowed in
         zip(choices.learned, choices.admissible, strict=True)], dtype=np.int64,
    )  # fmt: skip
    if not np.isfinite(budget) or not len(bits):
        return bits
    damage = _Damage(choices, macs)
    cost = choices.bops(macs, bits)
    while cost > budget:
        lowered = _best_move(choices, macs, bits, damage, cost, direction=-1, budget=np.inf)
        if lowered is None:
            return bits
        bits, cost = lowered
    while (raised := _best_move(choices, macs, bits, damage, cost, direction=+1, budget=budget)) is not None:
        bits, cost = raised
    for _ in range(_EXCHANGES):
        if cost >= (1 - tolerance) * budget:
            break
        exchanged = _exchange(choices, macs, bits, cost, budget)
        if exchanged is None:
            break
        bits, cost = exchanged
    return bits


class _Damage:
    def __init__(self, choices: BitChoices, macs: Floats) -> None:
        learned = np.append(choices.learned, 32.0)
        costs = macs * learned[choices.weight_index] * learned[choices.input_index].max(axis=1)
        shares = np.zeros(len(learned))
        np.add.at(shares, choices.weight_index, costs)
        for column in choices.input_index.T:
            np.add.at(shares, column, costs)
        self._learned = choices.learned
        self._scale = shares[:-1] / max(costs.sum(), 1e-30) / choices.learned

    def __call__(self, quantizer: int, bits: int) -> float:
        return float(self._scale[quantizer] * 4.0 ** (self._learned[quantizer] - bits))


def _neighbour(allowed: Sequence[int], bits: int, direction: int) -> int | None:
    beyond = [b for b in allowed if (b - bits) * direction > 0]
    return min(beyond, key=lambda b: abs(b - bits)) if beyond else None


def _moves(choices: BitChoices, bits: Integers, direction: int) -> list[tuple[int, int]]:
    steps = [(q, _neighbour(allowed, int(bits[q]), direction)) for q, allowed in enumerate(choices.admissible)]
    return [(q, b) for q, b in steps if b is not None]


def _best_move(
    choices: BitChoices,
    macs: Floats,
    bits: Integers,
    damage: _Damage,
    cost: float,
    *,
    direction: int,
    budget: float,
) -> tuple[Integers, float] | None:
    """One step of one quantizer: down at the least damage per BOP saved, or up at the greatest relief per BOP."""
    best: tuple[float, Integers, float] | None = None
    for quantizer, moved in _moves(choices, bits, direction):
        trial = bits.copy()
        trial[quantizer] = moved
        new_cost = choices.bops(macs, trial)
        if new_cost == cost or new_cost > budget:
            continue
        merit = abs(damage(quantizer, moved) - damage(quantizer, int(bits[quantizer]))) / abs(new_cost - cost)
        score = merit if direction < 0 else -merit
        if best is None or score < best[0]:
            best = score, trial, new_cost
    return None if best is None else best[1:]


def _exchange(
    choices: BitChoices, macs: Floats, bits: Integers, cost: float, budget: float
) -> tuple[Integers, float] | None:
    """One quantizer down and another up, such that the cost comes nearest to the budget from below."""
    best: tuple[Integers, float] | None = None
    for (down, lower), (up, higher) in itertools.product(_moves(choices, bits, -1), _moves(choices, bits, +1)):
        if down == up:
            continue
        trial = bits.copy()
        trial[down], trial[up] = lower, higher
        new_cost = choices.bops(macs, trial)
        if (best[1] if best else cost) < new_cost <= budget:
            best = trial, new_cost
    return best
