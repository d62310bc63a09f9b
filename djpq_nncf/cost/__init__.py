# SPDX-License-Identifier: Apache-2.0
"""What a network costs: MACs, bit operations (BOPs) and size."""

from djpq_nncf.cost._model import FLOAT_BITS, CostModel
from djpq_nncf.cost._operators import MacOperator, factors, find_embeddings, find_mac_operators, weight_source
from djpq_nncf.cost._recount import FileCost, FileLayer, recount

__all__ = [
    "FLOAT_BITS",
    "CostModel",
    "FileCost",
    "FileLayer",
    "MacOperator",
    "factors",
    "find_embeddings",
    "find_mac_operators",
    "recount",
    "weight_source",
]
