# SPDX-License-Identifier: Apache-2.0
"""The compression term of the loss: equation (17), with given strengths or with a strength that seeks a budget."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.algorithms.djpq._settings import PruningSettings
from djpq_nncf.cost import CostModel
from djpq_nncf.nn import Gate, Gates

GATE_SHARE = 2.0
"""Weight of the gates' penalty against log BOPs, where a target sets the strength.

Larger values trade bits for channels.
"""


@dataclass(frozen=True)
class Terms:
    """Parts of the compression loss, and the BOPs ratio they were computed at."""

    loss: Tensor
    bops_ratio: Tensor


class Objective:
    """Computes the loss from gates and quantizers.

    Args:
        cost: cost model of the network.
        gates: by group name, in the order of the cost model's groups.
        bits: the quantizers that serve each layer.
        settings: threshold, temperature and weighting of the gates.
    """

    def __init__(self, cost: CostModel, gates: Mapping[str, Gate], bits: BitWidths, settings: PruningSettings) -> None:
        self._cost = cost
        self._gates = Gates(gates.values())
        self._bits = bits
        self._settings = settings

    def kept_shares(self) -> Tensor:
        """[groups] soft share of channels kept, equation (19)."""
        return self._gates.mean(self._gates.keep_probability(self._settings.threshold, self._settings.temperature))

    def bops(self) -> Tensor:
        """[layers] soft BOPs, equations (14) to (16)."""
        kept, (weight_bits, activation_bits) = self.kept_shares(), self._bits.soft()
        device = kept.device if self._gates else weight_bits.device
        return self._cost.soft_bops(kept.to(device), weight_bits.to(device), activation_bits.to(device))

    def with_strengths(self, gamma: float, beta: float) -> Terms:
        """``gamma * sum log(1 + alpha) + beta * sum BOPs``, as equations (13) and (17) have it."""
        bops = self.bops().sum()
        loss = beta * bops
        if self._gates and gamma:
            loss = loss + gamma * self._gates.penalty().sum()
        return Terms(loss, (bops / self._cost.baseline_bops).detach())

    def with_budget(self, strength: float) -> Terms:
        """``strength * (log(BOPs / baseline) + GATE_SHARE * weighted sum of log(1 + alpha))``.

        The logarithm makes the strength independent of the network's size. A gate's weight is the share of all BOPs
        that its channel takes part in, so that channels go where that saves most.
        """
        bops = self.bops()
        ratio = bops.sum() / self._cost.baseline_bops
        loss = torch.log(ratio)
        if self._gates:
            weights = self._gate_weights(bops.detach())
            loss = loss + GATE_SHARE * (weights * self._gates.mean(self._gates.penalty())).sum()
        return Terms(strength * loss, ratio.detach())

    def _gate_weights(self, bops: Tensor) -> Tensor:
        """[groups] share of the BOPs that a group takes part in; equal ones without ``cost_weighted``."""
        if self._settings.cost_weighted:
            return self._cost.group_shares(bops)
        return torch.full((len(self._gates),), 1 / len(self._gates), device=bops.device)
