# SPDX-License-Identifier: Apache-2.0
"""What a network costs: MACs, bit operations (BOPs) and size."""

from djpq_nncf.cost._model import FLOAT_BITS, CostModel
from djpq_nncf.cost._operators import MacOperator, find_mac_operators, weight_source

__all__ = ["FLOAT_BITS", "CostModel", "MacOperator", "find_mac_operators", "weight_source"]
