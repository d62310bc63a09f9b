# SPDX-License-Identifier: Apache-2.0
"""What several tests of quantizers need."""

import torch
from torch import Tensor, nn

from djpq_nncf.nn import ActivationQuantizer, WeightQuantizer, quantize_activation, quantize_weight


def learned_quantize(
    x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, q_s: Tensor | float = 0.0, signed: bool = True
) -> Tensor:
    """Equation (2) by the function that serves its case: activations have no exponent and no threshold."""
    smallest = torch.as_tensor(q_s, dtype=q_m.dtype)
    if signed and (t is not None or smallest):
        return quantize_weight(x, d, q_m, t, smallest)
    assert t is None and not smallest
    return quantize_activation(x, d, -q_m if signed else torch.zeros_like(q_m), q_m)


def levels_of(kind: str, bits: int) -> tuple[int, int]:
    """Lowest and highest code of a grid."""
    if kind == "asymmetric":
        below = 2 * round(LOW_SHARE * (2**bits - 1) / 2)
        return -below, 2**bits - 1 - below
    if kind == "unsigned":
        return 0, 2**bits - 1
    most = 2 ** (bits - 1) - 1
    return (-most - 1 if kind == "symmetric" else -most), most


def make_quantizer(kind: str, *, power_of_two: bool = False) -> WeightQuantizer | ActivationQuantizer:
    """A quantizer of one of `KINDS`, for 2 to 16 bits."""
    if kind.startswith("weight"):
        return WeightQuantizer(max_bits=16, learn_exponent=kind == "weight_exponent", power_of_two=power_of_two)
    assert kind in ("unsigned", "symmetric", "asymmetric")
    quantizer = ActivationQuantizer(kind, max_bits=16, power_of_two=power_of_two)
    if quantizer.low_share is not None:
        nn.init.constant_(quantizer.low_share, LOW_SHARE)
    return quantizer


KINDS = ["weight_exponent", "weight_linear", "symmetric", "unsigned", "asymmetric"]
LOW_SHARE = 0.23
