# SPDX-License-Identifier: Apache-2.0
"""Bit-widths chosen by the loss that they measure, not by the estimate of the freeze: a choice of the ablations."""

import copy
import functools
import itertools
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.algorithms.djpq._targets import TOLERANCE, amounts_of, budget_of, choices_of
from djpq_nncf.passes import kept_channels

BATCHES = 8
AT_ONCE = 3
MEASURED = 12
Widths = tuple[int, ...]

_freeze = DJPQController.freeze


def freeze(self: DJPQController, **options: Any) -> None:
    """As the controller does; then up to three widths at a time change by a bit as long as that lowers the loss.

    The loss is that of training batches, before any fine-tuning. What each step alone does to it is added up to rank
    what keeps within the budget, and the first `MEASURED` of that are measured.
    """
    _freeze(self, **options)
    network, quantizers = self._network, list(self._bits.quantizers.values())
    batches = list(itertools.islice(self._data or (), BATCHES))
    model = copy.deepcopy(self.model).train()
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = 0.0
    names = {module: name for name, module in self.model.named_modules()}
    copies = [model.get_submodule(names[quantizer]) for quantizer in quantizers]
    choices = choices_of(self._bits, power_of_two=False)
    amounts = amounts_of(network.cost, kept_channels(network.analysis, network.gates))
    budget = budget_of(self._settings.target, network.cost)

    @functools.cache
    @torch.no_grad()
    def loss(bits: Widths) -> float:
        for quantizer, width in zip(copies, bits, strict=True):
            quantizer.fix_bits(width)
        return sum(float(F.cross_entropy(model(images), labels)) for images, labels in batches) / len(batches)

    def use(bits: Widths) -> float:
        return budget.use(choices, amounts, torch.tensor(bits).numpy())

    bits: Widths = tuple(quantizer.bits or 0 for quantizer in quantizers)
    while True:
        rises = {}
        for at, quantizer in enumerate(quantizers):
            for width in (bits[at] - 1, bits[at] + 1):
                step = (*bits[:at], width, *bits[at + 1 :])
                if quantizer.min_bits <= width <= quantizer.max_bits and use(step) != use(bits):
                    rises[at, width] = loss(step) - loss(bits)
        trials = []
        for count in range(1, AT_ONCE + 1):
            for steps in itertools.combinations(rises, count):
                trial = tuple(dict(steps).get(at, width) for at, width in enumerate(bits))
                if len(dict(steps)) == count and 1 - TOLERANCE <= use(trial) <= 1:
                    trials.append((sum(rises[step] for step in steps), trial))
        best = min((trial for _, trial in sorted(trials)[:MEASURED]), key=loss, default=bits)
        if loss(best) >= loss(bits):
            break
        bits = best
    for quantizer, width in zip(quantizers, bits, strict=True):
        quantizer.fix_bits(width)
    network.tighten_weight_ranges()
