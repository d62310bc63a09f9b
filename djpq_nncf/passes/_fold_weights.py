# SPDX-License-Identifier: Apache-2.0
"""The pass that turns computed weights into parameters."""

import copy
import warnings

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.modules.dropout import _DropoutNd

from djpq_nncf.cost import find_mac_operators, weight_source


@torch.no_grad()
def fold_computed_weights(model: GraphModule) -> GraphModule:
    """Replace weights that are computed from parameters (weight norm and other parametrizations) by their values.

    A norm over channels of a weight would change with every channel that goes, and a quantizer needs a weight to act
    on. From here on these layers are trained without their parametrization.

    Args:
        model: a captured graph; it is copied if there is something to fold.

    Warns:
        UserWarning: a weight was computed with dropout, which is gone too.

    Returns:
        A captured graph in which the weight of every layer is a parameter, named ``<layer>.weight`` where it was
        computed before; parameters that nothing reads any more are gone.
    """
    if not _computed(model):
        return model
    model = copy.deepcopy(model)
    evaluate = _Evaluate(copy.deepcopy(model).eval())
    before = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    for name, source in _computed(model).items():
        if _drops_out(model, source):
            warnings.warn(
                f"'{name}' was computed with dropout: from here on it is a parameter, trained without it.", stacklevel=2
            )
        path, _, attribute = name.rpartition(".")
        _ensure_module(model, path).register_parameter(attribute, nn.Parameter(evaluate(source).detach().clone()))
        with model.graph.inserting_before(source):
            weight = model.graph.get_attr(name)
        weight.meta["val"] = source.meta["val"]
        source.replace_all_uses_with(weight)
    model.graph.eliminate_dead_code()
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    for name in before - {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}:
        path, _, attribute = name.rpartition(".")
        if path not in called:
            delattr(model.get_submodule(path), attribute)
    model.graph.lint()
    model.recompile()
    return model


def _computed(model: GraphModule) -> dict[str, Node]:
    """Computed weights: the name each will have, and the node that computes it."""
    nodes = {node.name: node for node in model.graph.nodes}
    sources = {op.weight: weight_source(nodes[op.node]) for op in find_mac_operators(model) if op.weight is not None}
    return {name: source for name, source in sources.items() if source is not None and source.op != "get_attr"}


def _drops_out(model: GraphModule, node: Node) -> bool:
    """Whether there is dropout on the way from the parameters to the node's value."""
    if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), _DropoutNd):
        return True
    return any(_drops_out(model, source) for source in node.all_input_nodes)


class _Evaluate:
    """Computes the value of a node that depends on parameters alone."""

    def __init__(self, model: GraphModule) -> None:
        self._interpreter = Interpreter(model)
        self._values: dict[Node, torch.Tensor] = {}

    def __call__(self, node: Node) -> torch.Tensor:
        """``node`` may belong to a copy of the graph."""
        if node not in self._values:
            for source in node.all_input_nodes:
                self(source)
            self._interpreter.env.update(self._values)
            self._values[node] = self._interpreter.run_node(node)
        return self._values[node]


def _ensure_module(model: GraphModule, path: str) -> nn.Module:
    module: nn.Module = model
    for name in path.split(".") if path else ():
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        module = getattr(module, name)
    return module
