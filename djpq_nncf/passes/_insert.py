# SPDX-License-Identifier: Apache-2.0
"""The FX pass that puts gates and quantizers into a captured graph."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from djpq_nncf.channels import ChannelAnalysis, ChannelGroup
from djpq_nncf.cost import MacOperator
from djpq_nncf.nn import GatedWeight
from djpq_nncf.passes._names import CONTAINER, module_name
from djpq_nncf.passes._placement import ActivationPoint, Placement


@dataclass(frozen=True)
class Inserted:
    """A compressed graph, and the modules the pass put in (the same objects that the graph calls)."""

    model: GraphModule
    gates: Mapping[str, nn.Module]
    weight_quantizers: Mapping[str, nn.Module]
    activation_quantizers: Mapping[str, nn.Module]


def insert(
    model: GraphModule,
    analysis: ChannelAnalysis,
    operators: tuple[MacOperator, ...],
    placement: Placement,
    *,
    make_gate: Callable[[ChannelGroup], nn.Module],
    make_weight_quantizer: Callable[[MacOperator], nn.Module],
    make_activation_quantizer: Callable[[ActivationPoint], nn.Module],
) -> Inserted:
    """Insert one gate per channel group, and the quantizers of a placement.

    A gate multiplies the weights that read its channels (see :class:`GatedWeight`), once sampled per forward pass.
    Gates act on a weight before its quantizer does.

    Args:
        model: a captured graph; it is copied, and the copy shares nothing with it.
        analysis: its channel groups.
        operators: its layers.
        placement: which weights and activations are quantized.
        make_gate: builds the gate of a group, a module without inputs that returns [size] factors.
        make_weight_quantizer: builds the quantizer of a layer's weight.
        make_activation_quantizer: builds the quantizer of an activation.

    Returns:
        The compressed graph. Original nodes and parameters keep their names.
    """
    model = copy.deepcopy(model)
    nodes = {node.name: node for node in model.graph.nodes}
    model.add_module(CONTAINER, nn.Module())
    for kind in ("gates", "gated_weights", "weight_quantizers", "activation_quantizers"):
        model.get_submodule(CONTAINER).add_module(kind, nn.Module())

    gates = {name: make_gate(group) for name, group in analysis.groups.items()}
    weight_quantizers = {
        operator.weight: make_weight_quantizer(operator)
        for operator in operators
        if operator.layer in placement.weights
    }
    activation_quantizers: dict[str, nn.Module] = {}
    for point in placement.activations:
        if point.quantizer not in activation_quantizers:
            activation_quantizers[point.quantizer] = make_activation_quantizer(point)

    gate_nodes = _insert_gates(model, gates)
    _insert_on_weights(model, analysis, gate_nodes, weight_quantizers)
    paths = {
        quantizer: _add(model, "activation_quantizers", quantizer, module)
        for quantizer, module in activation_quantizers.items()
    }
    for point in placement.activations:
        _insert_on_activation(nodes, point, paths[point.quantizer])

    model.graph.eliminate_dead_code()
    model.graph.lint()
    model.recompile()
    return Inserted(model, gates, weight_quantizers, activation_quantizers)


def _add(model: GraphModule, kind: str, name: str, module: nn.Module) -> str:
    parent, own = f"{CONTAINER}.{kind}", module_name(name)
    while hasattr(model.get_submodule(parent), own):  # "a.b" and "a_b" are two layers
        own += "_"
    path = f"{parent}.{own}"
    device = next((parameter.device for parameter in model.parameters()), None)
    model.add_submodule(path, module.to(device))
    return path


def _insert_gates(model: GraphModule, gates: Mapping[str, nn.Module]) -> dict[str, Node]:
    graph = model.graph
    start = next(node for node in graph.nodes if node.op != "placeholder")
    result = {}
    with graph.inserting_before(start):
        for name, gate in gates.items():
            result[name] = graph.call_module(_add(model, "gates", name, gate))
    return result


def _insert_on_weights(
    model: GraphModule,
    analysis: ChannelAnalysis,
    gate_nodes: Mapping[str, Node],
    quantizers: Mapping[str, nn.Module],
) -> None:
    graph = model.graph
    gated_dim = {consumer.weight: consumer.dim for consumer in analysis.consumers}
    for weight in [node for node in graph.nodes if node.op == "get_attr"]:
        name = str(weight.target)
        users = list(weight.users)
        value = weight
        gated = _gated_weight(analysis, name, gated_dim[name]) if name in gated_dim else None
        if gated is not None:
            module, groups = gated
            with graph.inserting_after(value):
                path = _add(model, "gated_weights", name, module)
                value = graph.call_module(path, (value, *(gate_nodes[group] for group in groups)))
        if name in quantizers:
            with graph.inserting_after(value):
                value = graph.call_module(_add(model, "weight_quantizers", name, quantizers[name]), (value,))
        if value is not weight:
            value.meta["val"] = weight.meta["val"]
            for user in users:
                user.replace_input_with(weight, value)


def _gated_weight(analysis: ChannelAnalysis, name: str, dim: int) -> tuple[nn.Module, list[str]] | None:
    labels = analysis.parameter_labels[name][dim]
    assert labels is not None
    groups = list(dict.fromkeys(analysis.channel_group[channel] for channel in labels if channel >= 0))
    if not groups:
        return None
    offset, position = {}, 0
    for group in groups:
        offset[group] = position - analysis.groups[group].channels.start
        position += analysis.groups[group].size
    index = [position if channel < 0 else channel + offset[analysis.channel_group[channel]] for channel in labels]
    return GatedWeight(index, dim=dim), groups


def _insert_on_activation(nodes: Mapping[str, Node], point: ActivationPoint, path: str) -> None:
    source = nodes[point.source]
    graph = source.graph
    with graph.inserting_after(source):
        quantized = graph.call_module(path, (source,))
    quantized.meta["val"] = source.meta["val"]
    for user in list(source.users):
        if user is not quantized and (point.readers is None or user.name in point.readers):
            user.replace_input_with(source, quantized)
