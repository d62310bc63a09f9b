# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf inspect``: a network and a config as text, before any training."""

import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.fx import Node

from djpq_nncf.algorithms._data import Inputs, example_from_config
from djpq_nncf.algorithms.djpq import CompressedNetwork, DJPQSettings, insert_gates_and_quantizers
from djpq_nncf.capture import capture, layer_name
from djpq_nncf.channels import ChannelGroup
from djpq_nncf.config import NNCFConfig
from djpq_nncf.cost import FLOAT_BITS, MacOperator
from djpq_nncf.errors import ConfigError, DataError
from djpq_nncf.passes import ActivationPoint
from djpq_nncf.report import render_table


def inspect_model(model: nn.Module, name: str, config_path: Path | None, shape: tuple[int, ...] | None) -> str:
    """Everything that is known about a network and what a config does to it.

    Args:
        model: the network; it is not changed.
        name: to print.
        config_path: JSON file; None for the defaults.
        shape: of the input, batch first; None to take it from the config.

    Raises:
        ConfigError: the config is not valid or does not fit the network.
        CaptureError: the network cannot be captured.
        DataError: the shape of the input is not known.
    """
    config = (
        NNCFConfig.from_dict({"compression": {"algorithm": "djpq"}})
        if config_path is None
        else NNCFConfig.from_json(config_path)
    )
    settings = _settings(config)
    args, kwargs = _example(config, shape)
    captured = capture(model.eval(), args, kwargs)
    network = insert_gates_and_quantizers(captured, settings, config.target_device)
    nodes = {node.name: node for node in captured.graph.nodes}
    sections = [
        _summary(network, name, model, config_path),
        _layers(network),
        _groups(network),
        _quantizers(network, nodes),
        _frozen(network),
    ]
    return "\n\n".join(section for section in sections if section)


def _settings(config: NNCFConfig) -> DJPQSettings:
    for entry in config.algorithms:
        if entry["algorithm"] == "djpq":
            return DJPQSettings.from_dict(entry)
    raise ConfigError('$.compression: inspect needs an algorithm to show. Add {"algorithm": "djpq"}.')


def _example(config: NNCFConfig, shape: tuple[int, ...] | None) -> Inputs:
    if shape is not None:
        return (torch.rand(shape),), {}
    described = example_from_config(config.input_infos)
    if described is None:
        raise DataError(
            "The shape of the network's input is not known. Pass --input-shape 1,3,224,224, or write "
            '"input_info": {"sample_size": [1, 3, 224, 224]} in the config.'
        )
    return described


def _summary(network: CompressedNetwork, name: str, model: nn.Module, config_path: Path | None) -> str:
    shapes = ", ".join(
        "[" + ", ".join(["N", *map(str, spec.shape[1:])]) + "]" for spec in network.model.meta["djpq_inputs"]
    )
    weights, activations = len(network.weight_quantizers), len(network.activation_quantizers)
    rows = {
        "network": f"{name}, input {shapes}",
        "config": str(config_path) if config_path else "none given: DJPQ with its defaults",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "MACs per sample": f"{network.cost.baseline_macs:,}",
        "BOPs per sample": f"{network.cost.baseline_bops:,} ({FLOAT_BITS}-bit weights and activations)",
        "prunable channels": f"{network.analysis.channel_count:,} in {len(network.analysis.groups)} groups",
        "quantizers": f"{weights} of weights, {activations} of activations",
    }
    width = max(map(len, rows)) + 2
    return "\n".join(f"{key:{width}}{value}" for key, value in rows.items())


def _layers(network: CompressedNetwork) -> str:
    placement = network.placement
    total = network.cost.baseline_macs
    rows = [
        (
            operator.layer,
            operator.kind,
            "x".join(map(str, operator.weight_shape)),
            f"{operator.macs / 1e6:.3f}",
            f"{operator.macs * FLOAT_BITS**2 / 1e9:.3f}",
            f"{operator.macs / total:.1%}",
            "quantized" if operator.layer in placement.weights else "FP32",
            ", ".join(placement.inputs_of.get(operator.layer, ())) or "FP32",
        )
        for operator in network.operators
    ]
    header = ("layer", "operator", "weight shape", "MMACs", "GBOPs", "share", "weight", "input quantizer")
    return "Layers before compression\n" + render_table(header, rows, text_columns=(0, 1, 2, 6, 7))


def _groups(network: CompressedNetwork) -> str:
    groups = network.analysis.groups
    if not groups:
        return "Channel groups: none, nothing is pruned."
    operators = {operator.weight: operator for operator in network.operators}
    lines = ["Channel groups: what a group holds is kept or removed together, channel by channel"]
    width = shutil.get_terminal_size((110, 24)).columns
    for group in groups.values():
        members = "; ".join(_members(group, operators))
        lines.append(f"  {group.name}, {group.size} channels")
        lines += textwrap.wrap(
            members,
            width=max(60, width),
            initial_indent="      ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _members(group: ChannelGroup, operators: dict[str, MacOperator]) -> Iterator[str]:
    """Layers with the sides on which the channels live; other parameters by their module."""
    roles: dict[str, list[str]] = defaultdict(list)
    for member in group.members:
        operator = operators.get(member.parameter)
        found = roles[operator.layer if operator else member.layer]
        if operator is None:
            continue
        side = "out" if (member.dim == 0) != operator.kind.startswith("conv_transpose") else "in"
        times = f" ({member.multiplicity} for each channel)" if member.multiplicity > 1 else ""
        found.append(f" {side}{times}")
    for layer, sides in roles.items():
        yield layer + " and".join(sides)


def _quantizers(network: CompressedNetwork, nodes: dict[str, Node]) -> str:
    if not network.placement.activations:
        return "Activation quantizers: none, activations stay in floating point."
    points: dict[str, list[ActivationPoint]] = defaultdict(list)
    for point in network.placement.activations:
        points[point.quantizer].append(point)
    layers = {operator.node: operator.layer for operator in network.operators}
    order = {name: position for position, name in enumerate(nodes)}
    rows = []
    for quantizer, served in sorted(points.items(), key=lambda item: order[item[1][0].source]):
        bits = network.activation_quantizers[quantizer].bits
        readers = dict.fromkeys(
            layers.get(reader.name) or _operator(reader)
            for point in served
            for reader in nodes[point.source].users
            if point.readers is None or reader.name in point.readers
        )
        rows.append(
            (
                quantizer,
                " + ".join(_place(nodes[point.source]) for point in served),
                "signed" if served[0].signed else "unsigned",
                f"by {len(served)} tensors" if len(served) > 1 else "no",
                "learned" if bits is None else str(bits),
                ", ".join(readers),
            )
        )
    header = ("name", "quantizes", "sign", "shared", "bits", "read by")
    return "Activation quantizers\n" + render_table(header, rows, text_columns=range(len(header)))


def _place(node: Node) -> str:
    """Where a value comes from, as users see it."""
    if node.op == "placeholder":
        return f"input {node.name}"
    if node.op == "output":
        return "output"
    if node.op == "call_module":
        return str(node.target)
    return f"{layer_name(node)} ({_operator(node)})"


def _operator(node: Node) -> str:
    return str(node.target).split(".")[1] if node.op == "call_function" else str(node.target)


def _frozen(network: CompressedNetwork) -> str:
    frozen = network.analysis.frozen
    if not frozen:
        return ""
    lines = [f"  {entry.layer}: {entry.count} channels stay, {entry.reason}" for entry in frozen]
    return "\n".join(["Not prunable", *lines])
