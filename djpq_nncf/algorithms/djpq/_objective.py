# SPDX-License-Identifier: Apache-2.0
"""The compression term of the loss: equation (17), with given strengths or with a strength that seeks a budget."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from djpq_nncf.algorithms.djpq._bits import BitWidths, SoftBits
from djpq_nncf.algorithms.djpq._settings import PruningSettings, TargetSettings
from djpq_nncf.cost import CostModel
from djpq_nncf.nn import Gate, Gates

GATE_SHARE = 0.5
"""Weight of the gates' penalty against the log of the cost, where a target sets the strength.

Larger values trade bits for channels.
"""


@dataclass(frozen=True)
class Terms:
    """The compression loss, and what it was computed at: cost / target of the tightest target."""

    loss: Tensor
    use: Tensor


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
        """[groups] share of channels kept, soft (19) where the gates are learned."""
        if self._settings.criterion == "fisher":
            return self._gates.mean(self._gates.is_open())
        return self._gates.mean(self._gates.keep_probability(self._settings.threshold, self._settings.temperature))

    def bops(self) -> Tensor:
        """[layers] soft BOPs, equations (14) to (16)."""
        kept, bits = self._state()
        return self._cost.soft_bops(kept, bits.weights, bits.inputs)

    def with_strengths(self, gamma: float, beta: float) -> Tensor:
        """``gamma * sum log(1 + alpha) + beta * sum BOPs``, as equations (13) and (17) have it."""
        loss = beta * self.bops().sum()
        if self._gates and gamma:
            loss = loss + gamma * self._gates.penalty().sum()
        return loss

    def with_budget(self, strength: float, target: TargetSettings) -> Terms:
        """``strength * (log(cost / target) + GATE_SHARE * weighted sum of log(1 + alpha))`` for the tightest target.

        The logarithm makes the strength independent of the network's size. A gate's weight is the share of the cost
        that its channel takes part in, so that channels go where that saves most.
        """
        costs = self._costs(target)
        uses = torch.stack([values.sum() for values in costs.values()])
        use = uses.max()
        loss = torch.log(use)
        if self._gates and self._settings.criterion == "information_bottleneck":
            weights = torch.stack([self._gate_weights(name, values.detach()) for name, values in costs.items()])
            penalties = self._gates.mean(self._gates.penalty())
            loss = loss + GATE_SHARE * (weights[uses.argmax()] * penalties).sum()
        return Terms(strength * loss, use.detach())

    @torch.no_grad()
    def channel_shares(self, target: TargetSettings) -> Tensor:
        """[groups] share of the tightest cost that goes with one open channel."""
        costs = self._costs(target)
        kind = max(costs, key=lambda name: float(costs[name].sum()))
        open_channels = self.kept_shares() * self._gates.sizes
        shares = self._gate_weights(kind, costs[kind]) / open_channels.clamp_min(1)
        return shares.cpu()

    def _costs(self, target: TargetSettings) -> dict[str, Tensor]:
        """What is used / allowed, by row, of each cost that has a target."""
        kept, bits = self._state()
        cost, costs = self._cost, dict[str, Tensor]()
        if target.bops_ratio is not None:
            costs["bops"] = cost.soft_bops(kept, bits.weights, bits.inputs) / (target.bops_ratio * cost.baseline_bops)
        if target.macs_ratio is not None:
            costs["macs"] = cost.soft_macs(kept) / (target.macs_ratio * cost.baseline_macs)
        if target.size_ratio is not None:
            costs["size"] = cost.soft_sizes(kept) * bits.stored / (target.size_ratio * cost.baseline_size)
        return costs

    def _state(self) -> tuple[Tensor, SoftBits]:
        """Kept shares and bit-widths, on the device of the gates if there are any."""
        kept, bits = self.kept_shares(), self._bits.soft()
        device = kept.device if self._gates else bits.weights.device
        return kept.to(device), SoftBits(*(values.to(device) for values in bits))

    def _gate_weights(self, kind: str, costs: Tensor) -> Tensor:
        """[groups] share of a cost that a group takes part in; equal ones without ``cost_weighted``."""
        if not self._settings.cost_weighted:
            return torch.full((len(self._gates),), 1 / len(self._gates), device=costs.device)
        return self._cost.group_shares_of_size(costs) if kind == "size" else self._cost.group_shares(costs)
