# SPDX-License-Identifier: Apache-2.0
"""What a target means for a network: budgets, what may be decided within them, and how far that reaches."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.algorithms.djpq._budget import Amounts, BitChoices, Budget
from djpq_nncf.algorithms.djpq._settings import DJPQSettings, TargetSettings
from djpq_nncf.channels import ChannelAnalysis, Role
from djpq_nncf.cost import CostModel

TOLERANCE = 0.02
"""The frozen network uses between 98 % and 100 % of the tightest budget."""

_POWERS_OF_TWO = (2, 4, 8)
_BLOCK = 8
_USUAL_MARGIN = 0.25
_SHARE_OF_MARGIN = 1 / 8
"""What channels may have to save because of the margin: logarithm, of that of all they can save."""


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


def bit_margin(choices: BitChoices, cost: CostModel, analysis: ChannelAnalysis, settings: DJPQSettings) -> float:
    """How many bits above their least learned widths stay in the search.

    What is configured, else a quarter, or less where few channels may go: what bits do not save within the margin is
    left to channels, and may be an eighth of what these can save. That is, of the cost with the least bits or, if that
    is less, of the target, both as logarithms.
    """
    if settings.pruning.bit_margin is not None:
        return settings.pruning.bit_margin
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
