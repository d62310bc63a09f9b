# SPDX-License-Identifier: Apache-2.0
"""Closes the channels whose removal harms less than what it saves is worth in bits."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from djpq_nncf.algorithms.djpq._budget import BitChoices
from djpq_nncf.algorithms.djpq._network import CompressedNetwork
from djpq_nncf.algorithms.djpq._objective import Objective
from djpq_nncf.algorithms.djpq._settings import DJPQSettings
from djpq_nncf.algorithms.djpq._targets import amounts_of, bit_margin, block_of, budget_of
from djpq_nncf.passes import kept_channels

_LOSS = "the loss"
_UPDATES = 64
# Shares of the joint phase.
_MEMORY = 1 / 12
_WARM_UP = 1 / 12
_SHORTEST_WARM_UP = 20
"""Steps, but no more than half of them: a strength that still pushes bits to move is not what bits are worth."""
# Share of the cost that may go in one update: the network needs time to recover.
_FASTEST = 3 / _UPDATES


class FisherCriterion:
    """Decides, while the bit-widths are learned, which channels go.

    Without a channel the loss rises by about half of its Fisher information ``F``: the mean squared derivative of a
    sample's loss towards a factor on the channel (Theis et al. 2018, "Faster gaze prediction with dense networks and
    Fisher pruning"). What goes with it is a share ``w`` of the cost, and ``strength * w`` is what the learned
    bit-widths pay for the same saving, since the strength is the loss per logarithm of the cost at which they settle.
    While it swings, the strength is its running mean or, if that is less, its present value: a peak does not count, and
    nothing more goes where the budget needs no more pressure.
    A channel is closed where ``alpha = F / (2 * strength * w)`` is below the threshold, by default 1.

    A gate holds alpha as ``mu^2 / sigma^2``: its ``sigma^2`` is then, up to a factor, the noise at which the
    information bottleneck (13) would settle, found without drawing any.

    The loss that is trained on may be ``n`` times a negative log-likelihood: the task's and a teacher's together are
    those of targets between both. Its squared derivatives are then ``n^2`` times those of the likelihood, and its
    curvature ``n`` times: the squares are divided by ``n``.

    Args:
        network: whose gates are to be closed.
        objective: tells what channels cost.
        choices: of bit-widths.
        settings: threshold, ``round_to`` and target.
        batch: samples behind one derivative, in this process.

    Attributes:
        bit_margin: how far bit-widths stay above their least while it decides.
        closed: bool [size] by group name, what it closed. The freeze may open some of them again.
        zero: to be added to the loss: the derivative towards it is what a training loop multiplies the loss with.
    """

    def __init__(
        self,
        network: CompressedNetwork,
        objective: Objective,
        choices: BitChoices,
        settings: DJPQSettings,
        *,
        batch: int,
    ) -> None:
        self._network = network
        self._objective = objective
        self._settings = settings
        self._budget = budget_of(settings.target, network.cost)
        self._choices = choices
        self._most_bits = np.array([allowed[-1] for allowed in choices.admissible], dtype=np.int64)
        self._batch = batch
        self.bit_margin = bit_margin(choices, network.cost, network.analysis, settings)
        self.closed = {name: torch.zeros_like(gate.open) for name, gate in network.gates.items()}
        self.zero = torch.zeros((), requires_grad=True)
        self.zero.register_hook(self._collector(_LOSS))
        for name, gate in network.gates.items():
            gate.mu.register_hook(self._collector(name))
        self._latest: dict[str, Tensor] = {}
        self._likelihoods = 1.0
        self._memory = 0.0
        self._weight = 0.0
        self._mean_strength = 0.0
        self._strength = 0.0
        self._since_update = 0

    def step(self, strength: float, progress: float, steps: int, likelihoods: float = 1.0) -> None:
        """Close channels now and then. Call it before each forward pass.

        Args:
            strength: of the compression loss.
            progress: share of the joint phase that has passed.
            steps: length of the joint phase.
            likelihoods: how many negative log-likelihoods the loss is the sum of.
        """
        self._latest.clear()
        self._likelihoods = likelihoods
        self._memory = max(0.0, 1 - 1 / max(1.0, _MEMORY * steps))
        if not self._weight:
            self._mean_strength = strength
        self._mean_strength += (1 - self._memory) * (strength - self._mean_strength)
        self._strength = min(strength, self._mean_strength)
        self._since_update += 1
        warm_up = max(_WARM_UP, min(_SHORTEST_WARM_UP / steps, 0.5))
        if self._weight and self._since_update * _UPDATES >= steps and progress >= warm_up:
            self._since_update = 0
            self._update()

    def get_state(self) -> dict[str, Any]:
        """Plain data to continue from; the information is in the gates."""
        return {
            "weight": self._weight,
            "mean_strength": self._mean_strength,
            "since_update": self._since_update,
            "closed": {name: closed.nonzero().flatten().tolist() for name, closed in self.closed.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        self._weight, self._mean_strength = float(state["weight"]), float(state["mean_strength"])
        self._since_update = int(state["since_update"])
        for name, channels in state["closed"].items():
            self.closed[name][channels] = True

    def _collector(self, name: str) -> Callable[[Tensor], Tensor]:
        def collect(derivative: Tensor) -> Tensor:
            if not self._latest:
                # when the backward pass is over, in the thread that called it: the same place in every process
                torch.autograd.Variable._execution_engine.queue_callback(self._learn)
            self._latest[name] = derivative.detach().to(torch.promote_types(derivative.dtype, torch.float32))
            return torch.zeros_like(derivative)  # a factor that is not learned, and that no clipping should see

        return collect

    def _learn(self) -> None:
        """Running means of the squared derivatives of one backward pass, that of all processes together."""
        latest, batch = dict(self._latest), self._batch
        self._latest.clear()
        if len(latest) <= len(self._network.gates):
            return  # a loss without the compression's, or without the network's
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            batch *= torch.distributed.get_world_size()
            latest = _averaged(latest)
        loss_scale = latest.pop(_LOSS)
        self._weight = self._memory * self._weight + 1 - self._memory
        for name, derivative in latest.items():
            information = self._network.gates[name].information
            squared = batch * (derivative / loss_scale.to(derivative.device)).square() / self._likelihoods
            squared = torch.where(torch.isfinite(squared), squared, information)  # after an overflow of a scaled loss
            information.lerp_(squared.to(information), 1 - self._memory)

    def _update(self) -> None:
        shares = self._objective.channel_shares(self._settings.target)
        candidates: list[tuple[float, float, str, list[int]]] = []
        for name, share in zip(self._network.gates, shares.tolist(), strict=True):
            alpha = self._alpha(name, share)
            candidates += self._blocks(name, alpha, share)
        candidates.sort(key=lambda candidate: candidate[0])
        chosen, saved = 0, 0.0
        for _, share, _, _ in candidates:
            saved += share
            if chosen and saved > _FASTEST:
                break
            chosen += 1
        while chosen and not self._leaves_enough(candidates[:chosen]):
            chosen -= 1
        for _, _, name, channels in candidates[:chosen]:
            self._network.gates[name].close(channels)
            self.closed[name][channels] = True

    def _alpha(self, name: str, share: float) -> Tensor:
        """[size] harm / gain of each channel, also left in the gate."""
        gate = self._network.gates[name]
        information = gate.information / self._weight
        alpha = information / (2 * max(self._strength * share, 1e-30))
        with torch.no_grad():
            log_variance = -alpha.clamp(1e-12, 1e12).log()
            gate.log_variance.copy_(torch.where(gate.open, log_variance, gate.log_variance))
        return alpha

    def _blocks(self, name: str, alpha: Tensor, share: float) -> list[tuple[float, float, str, list[int]]]:
        """What may go of a group in whole blocks: mean alpha, share of the cost, and the channels of least alpha."""
        group, gate = self._network.analysis.groups[name], self._network.gates[name]
        block = block_of(group.role, group.size, self._settings.pruning.round_to)
        open_ids = gate.open.nonzero().flatten()
        ids = open_ids[alpha[open_ids].argsort(stable=True)]
        values, order = alpha[ids].tolist(), ids.tolist()
        result = []
        start, size = 0, len(order) % block or block
        while len(order) - start - size >= min(block, group.size):
            mean = sum(values[start : start + size]) / size
            if mean >= self._settings.pruning.threshold:
                break
            result.append((mean, share * size, name, order[start : start + size]))
            start, size = start + size, block
        return result

    def _leaves_enough(self, candidates: list[tuple[float, float, str, list[int]]]) -> bool:
        """Whether the budget can still be used up, with every bit-width at its greatest."""
        keep = kept_channels(self._network.analysis, self._network.gates)
        for _, _, name, channels in candidates:
            keep[self._network.analysis.groups[name].channels.start + np.array(channels)] = False
        return self._budget.use(self._choices, amounts_of(self._network.cost, keep), self._most_bits) >= 1


def _averaged(derivatives: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means over all processes, which have the same names and sizes."""
    names = sorted(derivatives)
    device = next(derivatives[name].device for name in names if name != _LOSS)
    flat = torch.cat([derivatives[name].flatten().to(device) for name in names])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([derivatives[name].numel() for name in names])
    return {name: part.view_as(derivatives[name]) for name, part in zip(names, parts, strict=True)}
