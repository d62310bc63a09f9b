# SPDX-License-Identifier: Apache-2.0
"""What an optimizer gets: the weights, and what DJPQ learns besides them, each at its own rate."""

from typing import Any

from torch import nn

from djpq_nncf.algorithms.djpq._network import CompressedNetwork
from djpq_nncf.algorithms.djpq._settings import DJPQSettings
from djpq_nncf.nn import LearnedQuantizer


def parameter_groups(
    network: CompressedNetwork, settings: DJPQSettings, lr: float, options: dict[str, Any]
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
    for name, parameters, multiplier in (
        ("gates", gates, settings.pruning.lr_multiplier),
        ("bit_widths", bit_widths, settings.quantization.lr_multiplier),
        ("ranges", ranges, settings.quantization.range_lr_multiplier),
    ):
        if parameters:
            own = {"name": name, "params": parameters, "lr": lr * overall * multiplier, "weight_decay": 0.0}
            groups.append({**options, **own})
    return groups
