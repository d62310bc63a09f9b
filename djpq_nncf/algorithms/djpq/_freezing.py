# SPDX-License-Identifier: Apache-2.0
"""The end of the joint phase: which channels stay, and how many bits each quantizer gets."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.algorithms.djpq._budget import Amounts, BitChoices, BitDamage, Budget, Integers, choose_bits
from djpq_nncf.algorithms.djpq._objective import GATE_SHARE
from djpq_nncf.algorithms.djpq._settings import DJPQSettings, TargetSettings
from djpq_nncf.channels import ChannelAnalysis, Role
from djpq_nncf.cost import CostModel
from djpq_nncf.nn import Gate

TOLERANCE = 0.02
"""The frozen network uses between 98 % and 100 % of the tightest budget."""

_POWERS_OF_TWO = (2, 4, 8)
_USUAL_MARGIN = 0.25
_SHARE_OF_MARGIN = 1 / 8
_SPARED = 4
_BLOCK = 8
_TRIED = 64
_WALKS = 10_000
_MOST_LOG_ALPHA = 20.0


def block_of(role: Role, size: int, round_to: int | None) -> int:
    """What the number of channels that stay in a group is a multiple of.

    ``round_to`` None: 8 where that is no more than a quarter of the group. INT8 kernels take channels in such blocks.
    """
    if role == "attention_heads":  # a head is as wide as it is: what layers lose with it is no odd count
        return 1
    if round_to is not None:
        return round_to
    return _BLOCK if size >= 4 * _BLOCK else 1


def choices_of(bits: BitWidths, *, power_of_two: bool) -> BitChoices:
    """What each quantizer may become."""
    learned = [float(quantizer.continuous_bits().detach()) for quantizer in bits.quantizers.values()]
    admissible = []
    for quantizer in bits.quantizers.values():
        if quantizer.bits is not None:
            admissible.append([quantizer.bits])
        else:
            span = range(quantizer.min_bits, quantizer.max_bits + 1)
            admissible.append([b for b in span if b in _POWERS_OF_TWO] if power_of_two else list(span))
    indices = bits.weight_index, bits.input_index, bits.stored_index
    return BitChoices(np.array(learned), admissible, *(index.numpy() for index in indices))


def budget_of(target: TargetSettings, cost: CostModel) -> Budget:
    """The target in absolute numbers."""

    def share(ratio: float | None, baseline: int) -> float | None:
        return None if ratio is None else ratio * baseline

    return Budget(
        bops=share(target.bops_ratio, cost.baseline_bops),
        macs=share(target.macs_ratio, cost.baseline_macs),
        size=share(target.size_ratio, cost.baseline_size),
    )


def amounts_of(cost: CostModel, keep: np.ndarray) -> Amounts:
    """What remains with these channels."""
    return Amounts(*(np.array(values, dtype=np.float64) for values in (cost.exact_macs(keep), cost.exact_sizes(keep))))


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
                values[channels.start : channels.stop] = read(name).float().cpu().numpy()
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
            first = len(is_open) % block or block  # a group that is whole need not be a multiple
            for channels, opened in ((is_open[:first], False), (may_open[-block:], True)):
                if len(channels) and (opened or len(is_open) > block):
                    step = keep.copy()
                    step[channels] = opened
                    yield step, bits

    def _reopen(self, keep: np.ndarray, bits: Integers) -> np.ndarray:
        """Open channels that still fit into the budget, greatest alpha first, in the blocks of their groups."""
        together: list[tuple[np.ndarray, np.ndarray]] = []
        for group in self._analysis.groups.values():
            multiple = block_of(group.role, group.size, self._settings.pruning.round_to)
            own = np.arange(group.channels.start, group.channels.stop)
            closed = own[~keep[own] & ~self._closed_by_hand[own]]
            closed = closed[np.argsort(-self._log_alpha[closed], kind="stable")]
            # what is left over at the end only makes a group whole
            together += [
                (closed[start : start + multiple], closed[:start] if len(closed) - start < multiple else closed[:0])
                for start in range(0, len(closed), multiple)
            ]
        together.sort(key=lambda pair: -self._log_alpha[pair[0][0]])
        for channels, needed in together[:_TRIED]:
            trial = keep.copy()
            trial[channels] = True
            if keep[needed].all() and self._use(trial, bits) <= 1:
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


def warn_if_off_target(asked: Mapping[str, float], reached: Mapping[str, float]) -> None:
    """For the caller of whoever calls it."""
    if asked and not 1 - TOLERANCE <= max(reached[key] / ratio for key, ratio in asked.items()) <= 1:
        named = ", ".join(f"{key} {reached[key]:.5f} where {ratio:.5f} was asked for" for key, ratio in asked.items())
        warnings.warn(
            f"The frozen network has {named}: whole bits and channels (in steps of pruning.round_to) come no closer.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Reach:
    """How far one cost can go: shares of the original's.

    Attributes:
        least: with the least bits, and as many channels gone as can go.
        greatest: with the greatest bits and every channel.
        holders: layers or weights with their shares of what is left at the least, greatest first.
    """

    least: float
    greatest: float
    holders: tuple[tuple[str, float], ...]


def reach(choices: BitChoices, cost: CostModel, analysis: ChannelAnalysis, round_to: int | None) -> dict[str, Reach]:
    """The reach of each key of ``target``."""
    least, greatest = np.zeros(analysis.channel_count, dtype=bool), np.ones(analysis.channel_count, dtype=bool)
    for group in analysis.groups.values():
        block = min(block_of(group.role, group.size, round_to), group.size)
        least[group.channels.start : group.channels.start + block] = True
    ends = []
    for keep, end in ((least, 0), (greatest, -1)):
        bits = np.array([allowed[end] for allowed in choices.admissible], dtype=np.int64)
        amounts = amounts_of(cost, keep)
        ends.append((choices.bops(amounts, bits), amounts.macs, choices.size(amounts, bits)))
    layers = [operator.layer for operator in cost.operators]
    keys = {
        "bops_ratio": (layers, cost.baseline_bops),
        "macs_ratio": (layers, cost.baseline_macs),
        "size_ratio": (cost.weights, cost.baseline_size),
    }
    result = {}
    for (key, (names, baseline)), small, large in zip(keys.items(), *ends, strict=True):
        shares = sorted(zip(names, (small / max(small.sum(), 1)).tolist(), strict=True), key=lambda item: -item[1])
        result[key] = Reach(float(small.sum()) / baseline, float(large.sum()) / baseline, tuple(shares))
    return result


def usual_margin(choices: BitChoices, cost: CostModel, analysis: ChannelAnalysis, settings: DJPQSettings) -> float:
    """How many bits above their least learned widths stay in the search: a quarter, or less where few channels may go.

    What bits do not save within the margin is left to channels. That may be an eighth of what these can save: of the
    cost with the least bits or, if that is less, of the target, both as logarithms.
    """
    amounts = amounts_of(cost, np.ones(analysis.channel_count, dtype=bool))
    least = np.array([allowed[0] for allowed in choices.admissible], dtype=np.float64)
    above = np.minimum(least + _USUAL_MARGIN, [allowed[-1] for allowed in choices.admissible])
    target, reaches = settings.target.given, reach(choices, cost, analysis, settings.pruning.round_to)
    baselines = {"bops_ratio": cost.baseline_bops, "size_ratio": cost.baseline_size}
    margin = _USUAL_MARGIN
    for key, cost_of in (("bops_ratio", choices.bops), ("size_ratio", choices.size)):
        if key in target:
            not_saved = np.log(cost_of(amounts, above).sum() / cost_of(amounts, least).sum())
            ratio, whole = target[key], cost_of(amounts, least).sum() / baselines[key]
            can_be_saved = max(0.0, np.log(min(ratio, whole) / reaches[key].least))
            if not_saved > 0:
                margin = min(margin, _USUAL_MARGIN * float(_SHARE_OF_MARGIN * can_be_saved / not_saved))
    return margin
