# SPDX-License-Identifier: Apache-2.0
"""Operators that carry a frozen quantizer through torch.export until a file format has its own form for it."""

import torch
from torch import Tensor, fx

from djpq_nncf.errors import ExportError
from djpq_nncf.export._fold import get_tensor
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


@quantize_weight.register_fake
def _(weight: Tensor, step: Tensor, bits: int, layer: int) -> Tensor:
    return torch.empty_like(weight)


@quantize_activation.register_fake
def _(x: Tensor, step: float, lowest: int, highest: int) -> Tensor:
    return torch.empty_like(x)


@name_weight.register_fake
def _(weight: Tensor, layer: int) -> Tensor:
    return torch.empty_like(weight)


_WEIGHTED = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "convolution",
        "linear",
    }
)


def mark(model: fx.GraphModule) -> tuple[str, ...]:
    """Replaces the frozen quantizers of ``model``, in place, by marker operators.

    Returns the names of the layers (the weight's path without ``.weight``), to which the markers point.
    """
    names = _mark_weights(model)
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
    return names


def _mark_weights(model: fx.GraphModule) -> tuple[str, ...]:
    graph = model.graph
    names: list[str] = []
    for node in list(graph.nodes):
        if node.op != "get_attr" or get_tensor(model, node.target).dim() < 2:
            continue
        names.append(str(node.target).removesuffix(".weight"))
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
            elif _is_weight_of(user, node):
                with graph.inserting_before(user):
                    marker = graph.call_function(torch.ops.djpq_nncf.name_weight.default, (node, layer))
                user.replace_input_with(node, marker)
    return tuple(names)


def _is_weight_of(layer: fx.Node, weight: fx.Node) -> bool:
    if layer.op != "call_function" or not isinstance(layer.target, torch._ops.OpOverload):
        return False
    is_layer = layer.target._schema.name.removeprefix("aten::") in _WEIGHTED
    return is_layer and len(layer.args) > 1 and layer.args[1] is weight
