# SPDX-License-Identifier: Apache-2.0
"""The FX pass that puts gates and quantizers into a captured graph."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from djpq_nncf.channels import FIXED, ChannelAnalysis, ChannelGroup, GatePoint, Labels
from djpq_nncf.cost import MacOperator
from djpq_nncf.nn import Gate, GatedWeight, GateScale, OpenChannels, Slot
from djpq_nncf.passes._names import CONTAINER, module_name
from djpq_nncf.passes._placement import ActivationPoint, Placement

_KINDS = ("gates", "gate_scales", "gated_weights", "open_channels", "weight_quantizers", "activation_quantizers")


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

    A gate multiplies the weights that read its channels (see :class:`GateScale`), once sampled per forward pass.
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
    _write_out_scales(model)
    nodes = {node.name: node for node in model.graph.nodes}
    model.add_module(CONTAINER, nn.Module())
    for kind in (
        "gates",
        "gate_scales",
        "gated_weights",
        "open_channels",
        "weight_quantizers",
        "activation_quantizers",
    ):
        model.get_submodule(CONTAINER).add_module(kind, nn.Module())

    gates = {name: make_gate(group) for name, group in analysis.groups.items()}
    weight_quantizers = {
        operator.weight: make_weight_quantizer(operator)
        for operator in operators
        if operator.weight is not None and operator.layer in placement.weights
    }
    activation_quantizers: dict[str, nn.Module] = {}
    for point in placement.activations:
        if point.quantizer not in activation_quantizers:
            activation_quantizers[point.quantizer] = make_activation_quantizer(point)

    gate_nodes = _insert_gates(model, gates)
    _insert_on_weights(model, analysis, gate_nodes, weight_quantizers)
    _run_on_open_channels(model, analysis, gates)
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


def _write_out_scales(model: GraphModule) -> None:
    """Attention scales by the width of its queries unless told otherwise, and that is about to shrink."""
    for node in model.graph.nodes:
        if node.target is torch.ops.aten.scaled_dot_product_attention.default and node.kwargs.get("scale") is None:
            width = node.args[0].meta["val"].shape[-1]
            node.update_kwarg("scale", float(width) ** -0.5)


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
    for weight in [node for node in graph.nodes if node.op == "get_attr"]:
        name = str(weight.target)
        users = list(weight.users)
        with graph.inserting_before(users[0] if users else weight):
            scales = [
                _insert_scale(model, analysis, gate_nodes, point, weight.meta["val"].dim())
                for point in analysis.gate_points
                if point.parameter == name
            ]
            if name in quantizers:
                path = _add(model, "weight_quantizers", name, quantizers[name])
                value = graph.call_module(path, (weight, *([reduce(_multiply, scales)] if scales else [])))
            elif scales:
                value = graph.call_module(_add(model, "gated_weights", name, GatedWeight()), (weight, *scales))
            else:
                continue
        value.meta["val"] = weight.meta["val"]
        for user in users:
            user.replace_input_with(weight, value)


def _insert_scale(
    model: GraphModule, analysis: ChannelAnalysis, gate_nodes: Mapping[str, Node], point: GatePoint, dims: int
) -> Node:
    index, groups = gate_index(analysis, point.labels)
    path = _add(model, "gate_scales", point.parameter, GateScale(index, dims - point.dim - 1))
    return model.graph.call_module(path, tuple(gate_nodes[group] for group in groups))


def _multiply(one: Node, other: Node) -> Node:
    return one.graph.call_function(torch.mul, (one, other))


def gate_index(analysis: ChannelAnalysis, labels: Labels, groups: Sequence[str] = ()) -> tuple[Tensor, list[str]]:
    """[n, k] positions in the concatenated gates of some groups, and these groups (those found in the labels)."""
    removable = [channel for channel in np.unique(labels).tolist() if channel != FIXED]
    chosen = list(groups) or list(dict.fromkeys(analysis.channel_group[channel] for channel in removable))
    ids = np.concatenate([np.asarray(analysis.groups[group].channels) for group in chosen])
    position = np.full(analysis.channel_count + 1, len(ids))  # the last entry is for FIXED
    position[ids] = np.arange(len(ids))
    return torch.from_numpy(position[labels]), chosen


def _run_on_open_channels(model: GraphModule, analysis: ChannelAnalysis, gates: Mapping[str, nn.Module]) -> None:
    """Operators that relate channels to each other leave out those that are closed."""
    for node in list(model.graph.nodes):
        call = analysis.run_on_open.get(node.name)
        involved = [labels for dims in (*call.inputs.values(), call.output) for labels in dims.values()] if call else []
        if call is None or not involved:
            continue
        sources = node.all_input_nodes
        groups = list(dict.fromkeys(group for labels in involved for group in gate_index(analysis, labels)[1]))
        slots = {source: Slot(i) for i, source in enumerate(sources)}
        module = OpenChannels(
            node.target,
            map_arg(node.args, lambda source: slots[source]),  # type: ignore[arg-type,return-value]  # noqa: B023
            map_arg(node.kwargs, lambda source: slots[source]),  # type: ignore[arg-type,return-value]  # noqa: B023
            [gate for group in groups if isinstance(gate := gates[group], Gate)],
            {i: _positions(analysis, dims, groups) for i, dims in call.inputs.items()},
            _positions(analysis, call.output, groups),
        )
        node.op, node.target = "call_module", _add(model, "open_channels", node.name, module)
        node.args, node.kwargs = tuple(sources), {}


def _positions(analysis: ChannelAnalysis, dims: Mapping[int, Labels], groups: Sequence[str]) -> dict[int, Tensor]:
    return {dim: gate_index(analysis, labels, groups)[0] for dim, labels in dims.items()}


def _insert_on_activation(nodes: Mapping[str, Node], point: ActivationPoint, path: str) -> None:
    source = nodes[point.source]
    graph = source.graph
    with graph.inserting_after(source):
        quantized = graph.call_module(path, (source.args[0] if point.rectifies else source,))
    quantized.meta["val"] = source.meta["val"]
    for user in list(source.users):
        if user is not quantized and (point.readers is None or user.name in point.readers):
            user.replace_input_with(source, quantized)
