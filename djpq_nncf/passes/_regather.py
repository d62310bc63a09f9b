# SPDX-License-Identifier: Apache-2.0
"""Values whose way from an earlier one leads through something that would not be a grid any more."""

import numpy as np
import torch
from torch.fx import GraphModule, Node

from djpq_nncf.channels import Regather, Removal, shape_of

aten = torch.ops.aten


def gather_torn_values(model: GraphModule, removal: Removal) -> None:
    """Make such values straight from the earlier one: select what remains, unfold it, permute."""
    nodes = {node.name: node for node in model.graph.nodes}
    for name, regather in removal.analysis.regathers.items():
        node, root = nodes.get(name), nodes[regather.root]
        if node is None or not any(removal.shrinks(root, dim) for dim in range(len(shape_of(root)))):
            continue
        with model.graph.inserting_before(node):
            value = _regathered(model, node, root, regather, removal)
            for quantizer in _modules_between(root, node):  # they act on each element, so they may as well come last
                value = model.graph.call_module(quantizer, (value,))
        value.meta = dict(node.meta)
        node.replace_all_uses_with(value)
        model.graph.erase_node(node)
        value.name = name
        nodes[name] = value
    model.graph.eliminate_dead_code()
    for node in model.graph.nodes:
        if node.target is aten.view.default:  # what was contiguous may be gathered now
            node.target = aten.reshape.default


def _regathered(model: GraphModule, node: Node, root: Node, regather: Regather, removal: Removal) -> Node:
    graph, labels = model.graph, removal.labels(node)
    kept = [
        np.arange(size) if not labels or (ids := labels[dim]) is None else removal.kept(ids)
        for dim, size in zip(regather.target_dims, regather.positions.shape, strict=True)
    ]
    before = regather.positions[np.ix_(*kept)] if kept else regather.positions
    root_labels = removal.labels(root)[regather.dim]
    assert root_labels is not None
    remaining = removal.kept(root_labels)
    positions = np.searchsorted(remaining, before.reshape(-1))
    assert np.array_equal(remaining[positions], before.reshape(-1)), node
    value = _select(model, root, regather.dim, positions, node.name)
    if before.ndim == 0:
        value = graph.call_function(aten.squeeze.dims, (value, [regather.dim]))
    elif before.ndim > 1:
        value = graph.call_function(aten.unflatten.int, (value, regather.dim, list(before.shape)))
    # the dimensions of the root keep their order around those unfolded from one of them
    going = dict(regather.kept_dims)
    targets: list[int | None] = []
    for dim in range(len(shape_of(root))):
        targets += regather.target_dims if dim == regather.dim else [going.get(dim)]
    lost = [position for position, target in enumerate(targets) if target is None]  # of size one
    if lost:
        value = graph.call_function(aten.squeeze.dims, (value, lost))
    order = [target for target in targets if target is not None]
    if order != sorted(order):
        value = graph.call_function(aten.permute.default, (value, np.argsort(order).tolist()))
    for target in range(len(shape_of(node))):
        if target not in order:
            value = graph.call_function(aten.unsqueeze.default, (value, target))
    return value


def _modules_between(root: Node, node: Node) -> list[str]:
    """Modules called on the way from ``root`` to ``node``, in this order."""
    found: list[str] = []
    while node is not root:
        (node, *_) = node.all_input_nodes
        if node.op == "call_module" and node is not root:
            found.insert(0, str(node.target))
    return found


def _select(model: GraphModule, root: Node, dim: int, positions: np.ndarray, name: str) -> Node:
    """Entries along a dimension: a slice if they follow one another."""
    first = int(positions[0]) if len(positions) else 0
    if np.array_equal(positions, np.arange(first, first + len(positions))):
        return model.graph.call_function(aten.slice.Tensor, (root, dim, first, first + len(positions)))
    attribute = f"{name}_positions"
    device = next((parameter.device for parameter in model.parameters()), None)
    model.register_buffer(attribute, torch.from_numpy(positions).to(device))
    return model.graph.call_function(aten.index_select.default, (root, dim, model.graph.get_attr(attribute)))
