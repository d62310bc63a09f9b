# SPDX-License-Identifier: Apache-2.0
"""Operators that carry a frozen quantizer through torch.export until a file format has its own form for it."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from djpq_nncf.cost import MacOperator, find_mac_operators, weight_source
from djpq_nncf.errors import ExportError
from djpq_nncf.export._fold import get_tensor
from djpq_nncf.export._products import mark_products
from djpq_nncf.nn._frozen import FrozenActivationQuantizer, FrozenWeightQuantizer

NAMESPACE = "djpq_nncf"


@torch.library.custom_op(f"{NAMESPACE}::quantize_weight", mutates_args=())
def quantize_weight(weight: Tensor, step: Tensor, bits: int, layer: int) -> Tensor:
    """What ``FrozenWeightQuantizer`` computes; ``layer`` is an index into the names of the layers."""
    return FrozenWeightQuantizer(step, bits)(weight).clone()


@torch.library.custom_op(f"{NAMESPACE}::quantize_activation", mutates_args=())
def quantize_activation(x: Tensor, step: float, lowest: int, highest: int) -> Tensor:
    """What ``FrozenActivationQuantizer`` computes."""
    return (x / step).round().clamp(lowest, highest) * step


@torch.library.custom_op(f"{NAMESPACE}::name_weight", mutates_args=())
def name_weight(weight: Tensor, layer: int) -> Tensor:
    """Identity that tells which layer a weight belongs to that is not quantized."""
    return weight.clone()


@torch.library.custom_op(f"{NAMESPACE}::multiply", mutates_args=())
def multiply(first: Tensor, second: Tensor, layer: int) -> Tensor:
    """Matrix product that has the name of a layer, and which torch.export leaves in one piece."""
    return torch.matmul(first, second)


@quantize_weight.register_fake
def _(weight: Tensor, step: Tensor, bits: int, layer: int) -> Tensor:
    return torch.empty_like(weight)


@quantize_activation.register_fake
def _(x: Tensor, step: float, lowest: int, highest: int) -> Tensor:
    return torch.empty_like(x)


@name_weight.register_fake
def _(weight: Tensor, layer: int) -> Tensor:
    return torch.empty_like(weight)


@multiply.register_fake
def _(first: Tensor, second: Tensor, layer: int) -> Tensor:
    return torch.matmul(first, second)


def mark(model: fx.GraphModule) -> tuple[str, ...]:
    """Replaces the frozen quantizers of ``model``, and products of activations, in place, by marker operators.

    Returns the names of the layers, to which the markers point.
    """
    operators = find_mac_operators(model)
    names: list[str] = []
    mark_products(model, operators, torch.ops.djpq_nncf.multiply.default, names)
    _mark_weights(model, operators, names)
    graph = model.graph
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = model.get_submodule(node.target)
        if isinstance(module, FrozenWeightQuantizer):
            raise ExportError(f"{node.target} quantizes something else than a parameter. Quantize it as an activation.")
        if isinstance(module, FrozenActivationQuantizer):
            arguments = (node.args[0], module.step.item(), module.lowest, module.highest)
            with graph.inserting_before(node):
                marker = graph.call_function(torch.ops.djpq_nncf.quantize_activation.default, arguments)
            marker.meta = dict(node.meta)
            node.replace_all_uses_with(marker)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    model.recompile()
    return tuple(names)


def _mark_weights(model: fx.GraphModule, operators: Iterable[MacOperator], names: list[str]) -> None:
    graph = model.graph
    layers = {operator.weight: operator.layer for operator in reversed(list(operators))}
    counted = {operator.node for operator in operators if operator.weight is not None}
    readers = {node for node in graph.nodes if node.name in counted}
    for node in list(graph.nodes):
        if node.op != "get_attr" or get_tensor(model, node.target).dim() < 2:
            continue
        names.append(layers.get(str(node.target), str(node.target).removesuffix(".weight")))
        layer = len(names) - 1
        for user in list(node.users):
            module = model.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, FrozenWeightQuantizer):
                # rounded here, for a runtime breaks ties its own way and has more levels to clamp to
                rounded = f"rounded_{layer}"
                module.register_buffer(rounded, module(get_tensor(model, node.target)).detach())
                with graph.inserting_before(user):
                    weight = graph.create_node("get_attr", f"{user.target}.{rounded}")
                    step = graph.create_node("get_attr", f"{user.target}.step")
                    arguments = (weight, step, module.bits, layer)
                    marker = graph.call_function(torch.ops.djpq_nncf.quantize_weight.default, arguments)
                user.replace_all_uses_with(marker)
                graph.erase_node(user)
            elif user in readers and weight_source(user) is node and node in user.args:
                with graph.inserting_before(user):
                    marker = graph.call_function(torch.ops.djpq_nncf.name_weight.default, (node, layer))
                user.replace_input_with(node, marker)
