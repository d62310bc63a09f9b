# SPDX-License-Identifier: Apache-2.0
"""What an optimizer gets: the weights, and what DJPQ learns besides them, each at its own rate."""

import math
from typing import Any

from torch import nn

from djpq_nncf.algorithms.djpq._network import CompressedNetwork
from djpq_nncf.algorithms.djpq._settings import DJPQSettings
from djpq_nncf.nn import LearnedQuantizer

_MULTIPLIER = 3.0
# How far a bit-width can move in the joint phase, as the logarithm of its levels: from 8 bits to 2, and a third more,
# since the strength is low at first. One that stays behind leaves its share of the saving to pruning.
_TRAVEL = 4 / 3 * math.log(255 / 3)


def parameter_groups(
    network: CompressedNetwork,
    settings: DJPQSettings,
    lr: float,
    options: dict[str, Any],
    *,
    joint_steps: int | None,
) -> list[dict[str, Any]]:
    """The groups that `DJPQController.param_groups` describes; those without parameters are left out."""
    quantizers: list[LearnedQuantizer] = [*network.weight_quantizers.values(), *network.activation_quantizers.values()]
    gates = [parameter for gate in network.gates.values() for parameter in gate.parameters()]
    bit_widths: list[nn.Parameter] = [quantizer.log_levels for quantizer in quantizers]
    ranges = [p for quantizer in quantizers for p in quantizer.parameters() if p is not quantizer.log_levels]
    inserted = {id(parameter) for parameter in (*gates, *bit_widths, *ranges)}
    weights = [parameter for parameter in network.model.parameters() if id(parameter) not in inserted]
    if settings.pruning.criterion == "fisher":
        gates = []  # masks, closed by the criterion
    groups = [{"name": "weights", "params": weights, "lr": lr, **options}]
    overall = settings.compression_lr_multiplier
    rate_of_bits = _rate_of_bits(settings.quantization.lr_multiplier, lr, joint_steps)
    for name, parameters, rate in (
        ("gates", gates, lr * settings.pruning.lr_multiplier),
        ("bit_widths", bit_widths, rate_of_bits),
        ("ranges", ranges, lr * settings.quantization.range_lr_multiplier),
    ):
        if parameters:
            own = {"name": name, "params": parameters, "lr": overall * rate, "weight_decay": 0.0}
            groups.append({**options, **own})
    return groups


def _rate_of_bits(multiplier: float | None, lr: float, joint_steps: int | None) -> float:
    """A step of Adam is about as long as its learning rate."""
    if multiplier is not None:
        return lr * multiplier
    return max(lr * _MULTIPLIER, _TRAVEL / joint_steps if joint_steps else 0.0)
