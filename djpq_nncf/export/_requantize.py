# SPDX-License-Identifier: Apache-2.0
"""Repeats a quantizer in front of a layer or sum which sees its grid only through pooling, reshaping or concat."""

import torch
from torch import fx

from djpq_nncf.cost import factors, find_mac_operators
from djpq_nncf.cost._dataflow import moved_values
from djpq_nncf.nn._frozen import FrozenActivationQuantizer


def repeat_quantizers(model: fx.GraphModule) -> None:
    """Puts quantizers, in place, where an input of a layer or sum lies on a grid but does not come from a quantizer.

    Runtimes fuse a layer only with the quantizer right in front of it, and a sum only if it has one in front of either
    term. Rounding values that are on the grid already changes nothing.
    """
    graph = model.graph
    counted = {operator.node for operator in find_mac_operators(model)}
    readers = [(node, factors(node)) for node in graph.nodes if node.name in counted]
    sums = [node for node in graph.nodes if node.target is torch.ops.aten.add.Tensor]
    readers += [(node, node.all_input_nodes) for node in sums if all(_grid_source(model, x) for x in node.args)]
    for node, sources in readers:
        for source in sources:
            target = None if _quantizer(model, source) is not None else _grid_source(model, source)
            if target is not None:
                with graph.inserting_before(node):
                    repeated = graph.call_module(target, (source,))
                repeated.meta = dict(source.meta)
                node.replace_input_with(source, repeated)
    model.recompile()


def _grid_source(model: fx.GraphModule, node: object) -> str | None:
    """The quantizer whose grid holds every value of ``node``, if there is one."""
    if not isinstance(node, fx.Node):
        return None
    if _quantizer(model, node) is not None:
        return str(node.target)
    targets = [_grid_source(model, source) for source in moved_values(model, node)]
    if not targets or targets[0] is None:
        return None
    grids = {None if target is None else _grid(model, target) for target in targets}
    return targets[0] if len(grids) == 1 else None


def _grid(model: fx.GraphModule, target: str) -> tuple[float, int, int]:
    quantizer = model.get_submodule(target)
    assert isinstance(quantizer, FrozenActivationQuantizer)
    return quantizer.step.item(), quantizer.lowest, quantizer.highest


def _quantizer(model: fx.GraphModule, node: fx.Node) -> FrozenActivationQuantizer | None:
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    return module if isinstance(module, FrozenActivationQuantizer) else None
