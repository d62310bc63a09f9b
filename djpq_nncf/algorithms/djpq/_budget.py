# SPDX-License-Identifier: Apache-2.0
"""Deciding channels and integer bit-widths so that a budget holds exactly."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_EXCHANGES = 200
_BINDING = 0.9
"""Of the greatest use by learned widths: targets that are used less than that have not moved them."""


@dataclass(frozen=True)
class Amounts:
    """What remains of a network when channels are gone: what the bit-widths are multiplied with.

    Attributes:
        macs: [layers] MACs.
        sizes: [weights] number of values.
    """

    macs: Floats
    sizes: Floats


@dataclass(frozen=True)
class BitChoices:
    """Bit-widths to decide, and how a network's cost depends on them.

    Attributes:
        learned: [quantizers] continuous bit-widths.
        admissible: for each quantizer the integers to choose from, ascending.
        weight_index: [layers] which quantizer gives a layer its weight bits; ``len(learned)`` for none (32 bits).
        input_index: [layers, k] which quantizers give a layer its input bits (the widest counts); likewise.
        stored_index: [weights] which quantizer gives a weight the bits it is stored with; likewise.
    """

    learned: Floats
    admissible: Sequence[Sequence[int]]
    weight_index: Integers
    input_index: Integers
    stored_index: Integers

    def bops(self, amounts: Amounts, bits: Integers | Floats) -> Floats:
        """[layers] BOPs with these bit-widths."""
        table = np.append(bits, 32)
        return np.asarray(amounts.macs * table[self.weight_index] * table[self.input_index].max(axis=1))

    def size(self, amounts: Amounts, bits: Integers | Floats) -> Floats:
        """[weights] bits of the weights with these bit-widths."""
        return np.asarray(amounts.sizes * np.append(bits, 32)[self.stored_index])


@dataclass(frozen=True)
class Budget:
    """The most that a network may use of each; None where there is no limit.

    Attributes:
        bops: bit operations per sample.
        macs: multiply-accumulates per sample.
        size: bits of all weights.
    """

    bops: float | None = None
    macs: float | None = None
    size: float | None = None

    @property
    def limits_anything(self) -> bool:
        return (self.bops, self.macs, self.size) != (None, None, None)

    def use(self, choices: BitChoices, amounts: Amounts, bits: Integers | Floats) -> float:
        """Used / allowed, of what is tightest: 1 where the budget is used up exactly."""
        uses = [0.0]
        if self.bops is not None:
            uses.append(float(choices.bops(amounts, bits).sum()) / self.bops)
        if self.macs is not None:
            uses.append(float(amounts.macs.sum()) / self.macs)
        if self.size is not None:
            uses.append(float(choices.size(amounts, bits).sum()) / self.size)
        return max(uses)


def choose_bits(choices: BitChoices, amounts: Amounts, budget: Budget, *, tolerance: float) -> Integers:
    """Integer bit-widths near the learned ones, of least estimated damage, that keep within ``budget``.

    Where the learned bits were a compromise between loss and log cost, a quantizer's marginal damage per bit equals the
    share of the cost it is responsible for over its bits; quantization noise falls by 4 per bit (`BitDamage`).

    Args:
        choices: what is to be decided.
        amounts: what remains of the network.
        budget: must not be exceeded; one without limits rounds every width to the nearest.
        tolerance: the result should use at least ``1 - tolerance`` of the budget, if the widths allow it.

    Returns:
        [quantizers] bit-widths. They exceed the budget only where all are at their least.
    """
    bits = np.array(
        [min(allowed, key=lambda b: abs(b - learned)) for learned, allowed in
         zip(choices.learned, choices.admissible, strict=True)], dtype=np.int64,
    )  # fmt: skip
    if not budget.limits_anything or not len(bits):
        return bits

    def use(bits: Integers) -> float:
        return budget.use(choices, amounts, bits)

    damage = BitDamage(choices, amounts, budget)
    used = use(bits)
    while used > 1:
        lowered = _best_move(choices, use, bits, damage, used, direction=-1, limit=np.inf)
        if lowered is None:
            return bits
        bits, used = lowered
    while (raised := _best_move(choices, use, bits, damage, used, direction=+1, limit=1.0)) is not None:
        bits, used = raised
    for _ in range(_EXCHANGES):
        if used >= 1 - tolerance:
            break
        exchanged = _exchange(choices, use, bits, used)
        if exchanged is None:
            break
        bits, used = exchanged
    return bits


class BitDamage:
    """Loss that bit-widths are estimated to cause, in units of the strength at which the learned ones settled.

    Where the loss falls as ``4^-b`` and the log of the cost rises by ``share / b``, they settle at the ``b*`` at which
    a loss of ``share / (b* * 2 log 2)`` is left. The share is of the target that binds, or the greater where two do.
    """

    def __init__(self, choices: BitChoices, amounts: Amounts, budget: Budget) -> None:
        self._learned = choices.learned
        targets: list[tuple[float, Floats, Integers]] = []  # allowed; costs and the quantizers behind each
        if budget.size is not None:
            targets.append((budget.size, choices.size(amounts, choices.learned), choices.stored_index[:, None]))
        if budget.bops is not None:
            widths = np.append(choices.learned, 32)[choices.input_index]
            widest = np.take_along_axis(choices.input_index, widths.argmax(axis=1, keepdims=True), axis=1)
            readers = np.column_stack([choices.weight_index, widest])
            targets.append((budget.bops, choices.bops(amounts, choices.learned), readers))
        uses = [float(costs.sum()) / allowed for allowed, costs, _ in targets]
        shares = np.zeros(len(choices.learned))
        for used, (_, costs, quantizers) in zip(uses, targets, strict=True):
            if used >= _BINDING * max(uses):
                shares = np.maximum(shares, _shares(costs, quantizers, len(shares)))
        self._scale = shares / (choices.learned * 2 * np.log(2))

    def __call__(self, quantizer: int, bits: int) -> float:
        return float(self._scale[quantizer] * 4.0 ** (self._learned[quantizer] - bits))

    def total(self, bits: Integers | Floats) -> float:
        """Of all quantizers."""
        return float((self._scale * 4.0 ** (self._learned - bits)).sum())


def _shares(costs: Floats, quantizers: Integers, count: int) -> Floats:
    """[rows] costs, [rows, k] the quantizers behind each -> [count] share of the sum, by quantizer."""
    totals = np.zeros(count + 1)
    for column in quantizers.T:
        np.add.at(totals, column, costs)
    return totals[:-1] / max(costs.sum(), 1e-30)


def _neighbour(allowed: Sequence[int], bits: int, direction: int) -> int | None:
    beyond = [b for b in allowed if (b - bits) * direction > 0]
    return min(beyond, key=lambda b: abs(b - bits)) if beyond else None


def _moves(choices: BitChoices, bits: Integers, direction: int) -> list[tuple[int, int]]:
    steps = [(q, _neighbour(allowed, int(bits[q]), direction)) for q, allowed in enumerate(choices.admissible)]
    return [(q, b) for q, b in steps if b is not None]


def _best_move(
    choices: BitChoices,
    use: Callable[[Integers], float],
    bits: Integers,
    damage: BitDamage,
    used: float,
    *,
    direction: int,
    limit: float,
) -> tuple[Integers, float] | None:
    """One step of one quantizer: down at the least damage for what it saves, or up at the greatest relief for it."""
    best: tuple[float, Integers, float] | None = None
    for quantizer, moved in _moves(choices, bits, direction):
        trial = bits.copy()
        trial[quantizer] = moved
        new = use(trial)
        if new == used or new > limit:
            continue
        merit = abs(damage(quantizer, moved) - damage(quantizer, int(bits[quantizer]))) / abs(new - used)
        score = merit if direction < 0 else -merit
        if best is None or score < best[0]:
            best = score, trial, new
    return None if best is None else best[1:]


def _exchange(
    choices: BitChoices, use: Callable[[Integers], float], bits: Integers, used: float
) -> tuple[Integers, float] | None:
    """One quantizer down and another up, such that the use comes nearest to the budget from below."""
    best: tuple[Integers, float] | None = None
    for (down, lower), (up, higher) in itertools.product(_moves(choices, bits, -1), _moves(choices, bits, +1)):
        if down == up:
            continue
        trial = bits.copy()
        trial[down], trial[up] = lower, higher
        new = use(trial)
        if (best[1] if best else used) < new <= 1:
            best = trial, new
    return best
