# SPDX-License-Identifier: Apache-2.0
"""The names users see for the nodes of a captured graph."""

import re

import torch
from torch import fx

_REPEATED_CALL = re.compile(r"@\d+")


def module_path(node: fx.Node) -> str:
    """Path of the original module that ran ``node``; '' for the model itself or where it is not known."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    return _REPEATED_CALL.sub("", path)


def module_label(node: fx.Node) -> str:
    """How an error names the module that ran ``node``."""
    path = module_path(node)
    return f"Module '{path}'" if path else "The model's own forward()"


def layer_name(node: fx.Node) -> str:
    """User-visible name of a node, for example ``layer1.0.conv2``.

    A module call has its path; an operator with a weight the path of that weight without ``.weight``; any
    other operator the path of the original module that ran it; what belongs to no module the node's own name.
    A weight may pass through modules (quantizers) on its way to the operator.
    """
    if node.op == "call_module":
        return str(node.target)
    path = module_path(node)
    weight = _weight_target(node)
    if weight is None:
        return path or node.name
    owner, _, attribute = weight.rpartition(".")
    if attribute != "weight":
        return weight
    if path != owner and path and _is_tied(node, f"{path}.weight", weight):
        return path
    return owner or node.name


def _weight_target(node: fx.Node) -> str | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.name == "weight":
            value = node.args[index] if index < len(node.args) else node.kwargs.get("weight")
            while isinstance(value, fx.Node) and value.op == "call_module" and value.args:
                value = value.args[0]
            if isinstance(value, fx.Node) and value.op == "get_attr":
                return str(value.target)
    return None


def _is_tied(node: fx.Node, first: str, second: str) -> bool:
    """Two names of one parameter: export knows only one of them."""
    gm = node.graph.owning_module
    if gm is None:
        return False
    try:
        return gm.get_parameter(first) is gm.get_parameter(second)
    except AttributeError:
        return False
