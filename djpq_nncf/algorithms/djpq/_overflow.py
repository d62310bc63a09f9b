# SPDX-License-Identifier: Apache-2.0
"""Which weights are kept within 7 bits, so that INT8 sums fit into 16 bits (NNCF's ``overflow_fix``).

CPUs without VNNI add two products of an unsigned and a signed byte in a saturating 16-bit integer (vpmaddubsw). Codes
up to 64 cannot overflow it: 2 * 255 * 64 = 32640. With 7 bits they end at 63; fewer bits ride in the same container.
"""

from collections.abc import Iterable

from torch.fx import GraphModule, Node

from djpq_nncf.algorithms.djpq._settings import OverflowFix
from djpq_nncf.cost import MacOperator

SAFE_BITS = 7


def narrow_weights(
    model: GraphModule, operators: Iterable[MacOperator], embeddings: Iterable[MacOperator], overflow_fix: OverflowFix
) -> frozenset[str]:
    """State-dict names of the weights that may have `SAFE_BITS` at most.

    Args:
        model: a captured graph.
        operators: its layers and products; only the former have weights.
        embeddings: looked up instead of multiplied, so that their tables may have all bits.
        overflow_fix: all layers, none, or those that no other layer separates from an input of the network.
    """
    if overflow_fix == "disable":
        return frozenset()
    layers = {operator.node: operator.weight for operator in operators if operator.weight is not None}
    if overflow_fix == "enable":
        return frozenset(layers.values())
    passed = {embedding.node for embedding in embeddings}
    reached: set[Node] = set()
    pending = [node for node in model.graph.nodes if node.op == "placeholder"]
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            if node.name not in layers and node.name not in passed:
                pending += node.users
    return frozenset(layers[node.name] for node in reached if node.name in layers)
