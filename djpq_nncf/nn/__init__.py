# SPDX-License-Identifier: Apache-2.0
"""Modules that passes insert into a captured graph."""

from djpq_nncf.nn._activation_quantizer import ActivationQuantizer, Grid
from djpq_nncf.nn._frozen import (
    FrozenActivationQuantizer,
    FrozenWeightQuantizer,
    levels_below_zero,
    signed_levels,
    unsigned_levels,
)
from djpq_nncf.nn._functional import (
    bits_of,
    nearest_power_of_two,
    normal_range,
    quantize_activation,
    quantize_weight,
)
from djpq_nncf.nn._gate import Gate
from djpq_nncf.nn._gated_weight import GatedWeight, GateScale
from djpq_nncf.nn._gates import Gates
from djpq_nncf.nn._learned_quantizer import LearnedQuantizer, Quantizers
from djpq_nncf.nn._open_channels import OpenChannels, Slot
from djpq_nncf.nn._optional_state import OptionalState
from djpq_nncf.nn._weight_quantizer import WeightQuantizer

__all__ = [
    "ActivationQuantizer",
    "FrozenActivationQuantizer",
    "FrozenWeightQuantizer",
    "Gate",
    "GateScale",
    "GatedWeight",
    "Gates",
    "Grid",
    "LearnedQuantizer",
    "OpenChannels",
    "OptionalState",
    "Quantizers",
    "Slot",
    "WeightQuantizer",
    "bits_of",
    "levels_below_zero",
    "nearest_power_of_two",
    "normal_range",
    "quantize_activation",
    "quantize_weight",
    "signed_levels",
    "unsigned_levels",
]
