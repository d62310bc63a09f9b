# SPDX-License-Identifier: Apache-2.0
"""The end of the joint phase: which channels stay, and how many bits each quantizer gets."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.algorithms.djpq._budget import BitDamage, Integers, choose_bits
from djpq_nncf.algorithms.djpq._objective import GATE_SHARE
from djpq_nncf.algorithms.djpq._settings import DJPQSettings
from djpq_nncf.algorithms.djpq._targets import TOLERANCE, amounts_of, block_of, budget_of, choices_of
from djpq_nncf.channels import ChannelAnalysis
from djpq_nncf.cost import CostModel
from djpq_nncf.nn import Gate

_SPARED = 4
_TRIED = 64
_WALKS = 10_000
_MOST_LOG_ALPHA = 20.0
"""Larger ones would swallow the rest of the sum that damage is."""


class Decision:
    """Chooses channels and bits together.

    Channels go first: those that the training closed, or those with alpha below the threshold (18). Then bits are
    rounded to fit the budget. Where they cannot come close enough to it, channels go or come back until they do, least
    alpha first: one channel is a small step. Steps of several widths and channels together are the last resort.

    Args:
        cost: cost model of the network.
        analysis: channel groups.
        gates: by group name.
        bits: quantizers of each layer.
        settings: threshold, ``round_to``, target.
        closed: bool [size] by group name, closed channels that may be opened again; others stay closed.
    """

    def __init__(
        self,
        cost: CostModel,
        analysis: ChannelAnalysis,
        gates: Mapping[str, Gate],
        bits: BitWidths,
        settings: DJPQSettings,
        closed: Mapping[str, Tensor],
    ) -> None:
        self._cost = cost
        self._analysis = analysis
        self._gates = gates
        self._settings = settings
        self._choices = choices_of(bits, power_of_two=settings.quantization.power_of_two)
        self._budget = budget_of(settings.target, cost)
        self._log_alpha = self._gather(lambda name: gates[name].log_alpha())
        self._closed_by_hand = self._gather(lambda name: ~gates[name].open).astype(bool)
        self._closed_by_hand &= ~self._gather(lambda name: closed.get(name, gates[name].open)).astype(bool)

    def make(self) -> tuple[np.ndarray, Integers]:
        """[channels] which stay, and [quantizers] bit-widths."""
        keep = self._chosen()
        bits = self._choose_bits(keep)
        if self._use(keep, bits) > 1:
            keep = self._close_until(keep, bits)
            bits = self._choose_bits(keep)
        if self._gates and self._budget.limits_anything and self._use(keep, bits) < 1 - TOLERANCE:
            return self._fill(keep, bits)
        return keep, bits

    def _gather(self, read: Callable[[str], Tensor]) -> np.ndarray:
        values = np.zeros(self._analysis.channel_count)
        for name in self._gates:
            channels = self._analysis.groups[name].channels
            with torch.no_grad():
                values[channels.start : channels.stop] = read(name).cpu().double().numpy()
        return values

    def _choose_bits(self, keep: np.ndarray) -> Integers:
        return choose_bits(self._choices, amounts_of(self._cost, keep), self._budget, tolerance=TOLERANCE)

    def _use(self, keep: np.ndarray, bits: Integers) -> float:
        return self._budget.use(self._choices, amounts_of(self._cost, keep), bits)

    def _chosen(self) -> np.ndarray:
        """What the training left open."""
        gone = self._gather(lambda name: self._gates[name].below(self._settings.pruning.threshold)).astype(bool)
        return self._rounded(~gone & ~self._closed_by_hand)

    def _rounded(self, keep: np.ndarray) -> np.ndarray:
        """At least one channel of a group stays, and ``round_to`` is honoured by keeping more."""
        keep = keep.copy()
        for group in self._analysis.groups.values():
            multiple = block_of(group.role, group.size, self._settings.pruning.round_to)
            own = slice(group.channels.start, group.channels.stop)
            available = ~self._closed_by_hand[own]
            count = max(1, int(keep[own].sum()))
            count = min(-(-count // multiple) * multiple, int(available.sum()))
            closed = np.flatnonzero(available & ~keep[own])
            closed = closed[np.argsort(-self._log_alpha[own][closed], kind="stable")]
            keep[group.channels.start + closed[: max(count - int(keep[own].sum()), 0)]] = True
        return keep

    def _ordered(self, candidates: np.ndarray) -> np.ndarray:
        """Channel ids among ``candidates``, least alpha first, the last open one of each group left out."""
        spared = set()
        for group in self._analysis.groups.values():
            ids = np.arange(group.channels.start, group.channels.stop)
            available = ids[~self._closed_by_hand[ids]]
            spared.add(int(available[np.argmax(self._log_alpha[available])]))
        ids = np.flatnonzero(candidates)
        ids = ids[np.argsort(self._log_alpha[ids], kind="stable")]
        return np.array([i for i in ids.tolist() if i not in spared], dtype=np.int64)

    def _close_until(self, keep: np.ndarray, bits: Integers, *, spare: int = 0) -> np.ndarray:
        """Close the fewest channels, least alpha first, that bring the cost within the budget, less ``spare``."""
        order = self._ordered(keep)

        def closed(count: int) -> np.ndarray:
            trial = keep.copy()
            trial[order[:count]] = False
            return self._rounded(trial)

        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self._use(closed(middle), bits) <= 1:
                high = middle
            else:
                low = middle + 1
        return closed(max(low - spare, 0))

    def _fill(self, keep: np.ndarray, bits: Integers) -> tuple[np.ndarray, Integers]:
        """Use what is left of the budget, with the least estimated damage of what is found.

        First one width is raised a little too far and channels are closed, then channels are reopened, if a little too
        far, paid for with bits. Where neither gets there, or only at the price of channels that the training left, it
        is two or three steps together, out of the order of alpha.
        """
        damage = self._damage(keep)
        trials = [self._trial(keep, bits)]
        for quantizer in self._quantizers_that_count():
            wider = [b for b in self._choices.admissible[quantizer] if b > bits[quantizer]]
            if wider:
                trial = bits.copy()
                trial[quantizer] = wider[0]
                trials.append(self._trial(self._close_until(keep, trial), trial))

        def best() -> _Trial:
            """Within the tolerance that of least damage, else the one nearest to it."""
            if within := [trial for trial in trials if trial.fits]:
                return min(within, key=lambda trial: damage(trial.keep, trial.bits))
            return max((trial for trial in trials if trial.use <= 1), key=lambda trial: trial.use)

        if not best().fits:
            everything = self._rounded(~self._closed_by_hand)
            for spare in range(_SPARED):
                reopened = self._close_until(everything, bits, spare=spare)
                trials.append(self._trial(reopened, self._choose_bits(reopened)))
            trials += [self._trial(self._reopen(trial.keep, trial.bits), trial.bits) for trial in trials]
        for count in (2, 3):
            found = best()
            if found.fits and (found.keep >= keep).all():
                break
            start = trials[0] if found.fits else found
            walks = itertools.islice(self._walks(start.keep, start.bits, count), _WALKS)
            trials += [trial for trial in itertools.starmap(self._trial, walks) if trial.fits]
        return best().keep, best().bits

    def _trial(self, keep: np.ndarray, bits: Integers) -> "_Trial":
        return _Trial(keep, bits, self._use(keep, bits))

    def _quantizers_that_count(self) -> list[int]:
        """Those whose width changes a cost that is limited."""
        counted = np.zeros(len(self._choices.learned) + 1, dtype=bool)
        if self._budget.bops is not None:
            counted[self._choices.weight_index] = counted[self._choices.input_index] = True
        if self._budget.size is not None:
            counted[self._choices.stored_index] = True
        return np.flatnonzero(counted[:-1]).tolist()

    def _damage(self, keep: np.ndarray) -> Callable[[np.ndarray, Integers], float]:
        """Estimates what channels and bit-widths near these cost, in units of the strength.

        By the Fisher criterion a channel harms by alpha times its share of the cost. Where gates are learned, its
        Fisher information is what (13) settles at: ``F / 2 = GATE_SHARE * share * alpha^2 / (1 + alpha)``.
        """
        pruning = self._settings.pruning
        amounts = amounts_of(self._cost, keep)
        used = self._budget.use(self._choices, amounts, self._choices.learned)
        shares = np.zeros(len(keep))
        for group in self._analysis.groups.values():
            fewer = keep.copy()
            own = np.arange(group.channels.start, group.channels.stop)
            fewer[own[keep[own]][:1]] = False
            left = self._budget.use(self._choices, amounts_of(self._cost, fewer), self._choices.learned)
            uniform = 1 / (len(self._gates) * max(keep[own].sum(), 1))
            shares[own] = 1 - left / used if pruning.cost_weighted else uniform
        alpha = np.exp(np.minimum(self._log_alpha, _MOST_LOG_ALPHA))
        of_channels = alpha * shares
        if pruning.criterion == "information_bottleneck":
            of_channels *= GATE_SHARE * alpha / (1 + alpha)
        of_bits = BitDamage(self._choices, amounts, self._budget)
        may_stay = ~self._closed_by_hand
        return lambda keep, bits: float(of_channels[may_stay & ~keep].sum()) + of_bits.total(bits)

    def _walks(self, keep: np.ndarray, bits: Integers, count: int) -> Iterator[tuple[np.ndarray, Integers]]:
        """So many steps, one combination after another."""
        if not count:
            yield keep, bits
            return
        for step in self._steps(keep, bits):
            yield from self._walks(*step, count - 1)

    def _steps(self, keep: np.ndarray, bits: Integers) -> Iterator[tuple[np.ndarray, Integers]]:
        """One width to the next, or one block of channels opened or closed."""
        for quantizer in self._quantizers_that_count():
            allowed = self._choices.admissible[quantizer]
            at = list(allowed).index(int(bits[quantizer]))
            for width in (*allowed[max(at - 1, 0) : at], *allowed[at + 1 : at + 2]):
                step = bits.copy()
                step[quantizer] = width
                yield keep, step
        for group in self._analysis.groups.values():
            block = block_of(group.role, group.size, self._settings.pruning.round_to)
            own = np.arange(group.channels.start, group.channels.stop)
            own = own[np.argsort(self._log_alpha[own], kind="stable")]
            is_open, may_open = own[keep[own]], own[~keep[own] & ~self._closed_by_hand[own]]
            for channels, opened in ((is_open[:block], False), (may_open[-block:], True)):
                if len(channels) and (opened or len(is_open) > block):
                    step = keep.copy()
                    step[channels] = opened
                    yield self._rounded(step), bits

    def _reopen(self, keep: np.ndarray, bits: Integers) -> np.ndarray:
        """Open channels that still fit into the budget, greatest alpha first, in the blocks of their groups."""
        together: list[np.ndarray] = []
        for group in self._analysis.groups.values():
            multiple = block_of(group.role, group.size, self._settings.pruning.round_to)
            own = np.arange(group.channels.start, group.channels.stop)
            closed = own[~keep[own] & ~self._closed_by_hand[own]]
            closed = closed[np.argsort(-self._log_alpha[closed], kind="stable")]
            together += [closed[start : start + multiple] for start in range(0, len(closed), multiple)]
        together.sort(key=lambda channels: -self._log_alpha[channels[0]])
        for channels in together[:_TRIED]:
            trial = keep.copy()
            trial[channels] = True
            if np.array_equal(trial, self._rounded(trial)) and self._use(trial, bits) <= 1:
                keep = trial
        return keep


class _Trial(NamedTuple):
    """Channels, bit-widths, and what they use of the budget."""

    keep: np.ndarray
    bits: Integers
    use: float

    @property
    def fits(self) -> bool:
        return 1 - TOLERANCE <= self.use <= 1
