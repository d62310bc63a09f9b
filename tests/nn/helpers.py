# SPDX-License-Identifier: Apache-2.0
"""What several tests of quantizers need."""

from djpq_nncf.nn import ActivationQuantizer, WeightQuantizer


def make_quantizer(kind: str, *, power_of_two: bool = False) -> WeightQuantizer | ActivationQuantizer:
    """A quantizer of one of `KINDS`, for 2 to 16 bits."""
    if kind.startswith("weight"):
        return WeightQuantizer(max_bits=16, learn_exponent=kind == "weight_exponent", power_of_two=power_of_two)
    return ActivationQuantizer(signed=kind == "signed", max_bits=16, power_of_two=power_of_two)


KINDS = ["weight_exponent", "weight_linear", "signed", "unsigned"]
