# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf inspect``: a network and a config as text, before any training."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.fx import GraphModule, Node

from djpq_nncf.algorithms.djpq import CompressedNetwork, DJPQSettings, insert_gates_and_quantizers
from djpq_nncf.capture import capture, layer_name
from djpq_nncf.cli._model import find_inputs
from djpq_nncf.config import NNCFConfig
from djpq_nncf.cost import FLOAT_BITS
from djpq_nncf.errors import ConfigError, ExportError
from djpq_nncf.passes import ActivationPoint, decompose_attention, fold_computed_weights
from djpq_nncf.report import groups_to_dot, render_groups, render_table


@dataclass(frozen=True)
class Inspection:
    """A network as a config would compress it.

    Attributes:
        captured: its graph.
        network: that with gates and quantizers.
    """

    captured: GraphModule
    network: CompressedNetwork

    def report(self, name: str, parameters: int, config_path: Path | None) -> str:
        """Everything that is known about it."""
        sections = [
            _summary(self.network, name, parameters, config_path),
            _layers(self.network),
            self.groups(),
            _quantizers(self.network, {node.name: node for node in self.captured.graph.nodes}),
        ]
        return "\n\n".join(sections)

    def groups(self) -> str:
        """The channel groups as a tree, and what stays."""
        return render_groups(self.network.analysis, self.captured, width=_terminal_width())

    def write_dot(self, path: Path) -> None:
        """Write the channel groups in DOT.

        Raises:
            ExportError: the file cannot be written.
        """
        try:
            path.write_text(groups_to_dot(self.network.analysis, self.captured), encoding="utf-8")
        except OSError as error:
            raise ExportError(
                f"'{path}' cannot be written: {error.strerror}. Give --dot a file in a folder that you may write to."
            ) from error


def inspect_model(model: nn.Module, config_path: Path | None, shape: tuple[int, ...] | None) -> Inspection:
    """Capture a network and do to it what a config says, short of initialising anything.

    Args:
        model: the network; it is not changed.
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
    (args, kwargs), dynamic = find_inputs(config.input_infos, shape)
    captured = fold_computed_weights(capture(model.eval(), args, kwargs, dynamic=dynamic))
    if settings.quantization.enabled:
        captured = decompose_attention(captured)  # so that the nodes are those that quantizers are placed at
    network = insert_gates_and_quantizers(captured, settings, config.target_device)
    return Inspection(captured, network)


def _settings(config: NNCFConfig) -> DJPQSettings:
    for entry in config.algorithms:
        if entry["algorithm"] == "djpq":
            return DJPQSettings.from_dict(entry)
    raise ConfigError('$.compression: inspect needs an algorithm to show. Add {"algorithm": "djpq"}.')


def _summary(network: CompressedNetwork, name: str, parameters: int, config_path: Path | None) -> str:
    shapes = ", ".join(
        "[" + ", ".join(["N", *map(str, spec.shape[1:])]) + "]" for spec in network.model.meta["djpq_inputs"]
    )
    weights, activations = len(network.weight_quantizers), len(network.activation_quantizers)
    rows = {
        "network": f"{name}, input {shapes}",
        "config": str(config_path) if config_path else "none given: DJPQ with its defaults",
        "parameters": f"{parameters:,}",
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


def _quantizers(network: CompressedNetwork, nodes: Mapping[str, Node]) -> str:
    if not network.placement.activations:
        return "Activation quantizers: none, activations stay in floating point."
    points: dict[str, list[ActivationPoint]] = defaultdict(list)
    for point in network.placement.activations:
        points[point.quantizer].append(point)
    layers = {operator.node: operator.layer for operator in network.operators}
    order = {name: position for position, name in enumerate(nodes)}
    rows = []
    for quantizer, served in sorted(points.items(), key=lambda item: order[item[1][0].source]):
        module = network.activation_quantizers[quantizer]
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
                module.grid,
                f"by {len(served)} tensors" if len(served) > 1 else "no",
                "learned" if module.bits is None else str(module.bits),
                ", ".join(readers),
            )
        )
    header = ("name", "quantizes", "grid", "shared", "bits", "read by")
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


def _terminal_width() -> int:
    return max(60, shutil.get_terminal_size((110, 24)).columns)
