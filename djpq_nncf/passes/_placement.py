# SPDX-License-Identifier: Apache-2.0
"""Which weights and activations are quantized: NNCF's placement, completed where it leaves a layer out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from djpq_nncf.capture import to_functional
from djpq_nncf.cost import MacOperator
from djpq_nncf.nncf_bridge import QuantizationPoint, find_quantization_points
from djpq_nncf.passes._sign import find_nonnegative


@dataclass(frozen=True)
class ActivationPoint:
    """An activation that is quantized.

    Attributes:
        quantizer: name of its quantizer; points with the same name share one (unified scales).
        source: name of the node whose value is quantized.
        readers: names of the nodes that read the quantized value; None: all that read ``source``.
        signed: whether the value can be negative (for a shared quantizer: any of its values).
        is_input: whether the value is an input of the network.
    """

    quantizer: str
    source: str
    readers: frozenset[str] | None
    signed: bool
    is_input: bool


@dataclass(frozen=True)
class Placement:
    """Layers whose weight is quantized, activations that are, and which quantizers feed each layer."""

    weights: frozenset[str]
    activations: tuple[ActivationPoint, ...]
    inputs_of: dict[str, tuple[str, ...]]


NOTHING = Placement(frozenset(), (), {})
"""The placement without any quantizer."""


def place_quantizers(
    model: GraphModule,
    operators: tuple[MacOperator, ...],
    *,
    is_quantizable: Callable[[MacOperator], bool] = lambda operator: True,
    target_device: str = "ANY",
) -> Placement:
    """Choose quantization points for a captured graph.

    NNCF's own points are taken as they are. A layer that it leaves in floating point (squeeze-and-excitation) gets a
    quantizer on its input edge: at strong budgets the BOPs of such layers would dominate.

    Raises:
        PlacementError: NNCF cannot handle the graph.
    """
    chosen = [operator for operator in operators if is_quantizable(operator)]
    ignored = [operator.node for operator in operators if not is_quantizable(operator)]
    points = find_quantization_points(to_functional(model), ignored_nodes=ignored, target_device=target_device)
    nodes = {node.name: node for node in model.graph.nodes}
    by_reader: dict[str, list[int]] = {}
    for point in points:
        for reader in point.serves:
            by_reader.setdefault(reader, []).append(point.scale_group)
    next_group = max((point.scale_group for point in points), default=0) + 1
    added: list[QuantizationPoint] = []
    for operator in chosen:
        if operator.node not in by_reader:
            source = nodes[operator.node].all_input_nodes[0]
            twin = next((p for p in added if nodes[p.node].all_input_nodes[0] is source), None)
            group = twin.scale_group if twin else next_group
            next_group += twin is None
            added.append(QuantizationPoint(operator.node, 0, (operator.node,), group))
            by_reader[operator.node] = [group]

    nonnegative = find_nonnegative(model)
    resolved = [(point, *_edge(nodes, point)) for point in (*points, *added)]
    signed_groups = {point.scale_group for point, source, _ in resolved if source.name not in nonnegative}
    names: dict[int, str] = {}
    for point, source, _ in resolved:
        names.setdefault(point.scale_group, source.name)
    names = _unique(names)

    merged: dict[tuple[str, str], ActivationPoint] = {}
    for point, source, readers in resolved:
        quantizer = names[point.scale_group]
        earlier = merged.get((quantizer, source.name))
        if earlier is not None and (earlier.readers is None or readers is None):
            readers = None
        elif earlier is not None and readers is not None:
            assert earlier.readers is not None
            readers = earlier.readers | readers
        merged[quantizer, source.name] = ActivationPoint(
            quantizer, source.name, readers, point.scale_group in signed_groups, source.op == "placeholder"
        )
    return Placement(
        weights=frozenset(operator.layer for operator in chosen),
        activations=tuple(merged.values()),
        inputs_of={
            operator.layer: tuple(dict.fromkeys(names[group] for group in by_reader[operator.node]))
            for operator in chosen
        },
    )


def _edge(nodes: dict[str, Node], point: QuantizationPoint) -> tuple[Node, frozenset[str] | None]:
    """The node whose value is quantized, and who reads it quantized."""
    node = nodes[point.node]
    if point.input_port is None:
        return node, None
    tensors = [source for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)]
    return tensors[point.input_port], frozenset({node.name})


def _unique(names: dict[int, str]) -> dict[int, str]:
    """Two quantizers on one value (for different readers) are told apart by a number."""
    seen: dict[str, int] = {}
    result = {}
    for group, name in names.items():
        seen[name] = seen.get(name, 0) + 1
        result[group] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return result
