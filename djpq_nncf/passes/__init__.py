# SPDX-License-Identifier: Apache-2.0
"""Graph passes: insert gates and quantizers, remove channels. Each takes a GraphModule and returns a new one."""

from djpq_nncf.passes._attention import decompose_attention
from djpq_nncf.passes._fold_weights import fold_computed_weights
from djpq_nncf.passes._insert import Inserted, insert
from djpq_nncf.passes._names import CONTAINER, module_name
from djpq_nncf.passes._placement import NOTHING, ActivationPoint, Placement, place_quantizers
from djpq_nncf.passes._remove import QUANTIZERS, kept_channels, remove

__all__ = [
    "CONTAINER",
    "NOTHING",
    "QUANTIZERS",
    "ActivationPoint",
    "Inserted",
    "Placement",
    "decompose_attention",
    "fold_computed_weights",
    "insert",
    "kept_channels",
    "module_name",
    "place_quantizers",
    "remove",
]
