# SPDX-License-Identifier: Apache-2.0
"""Channel groups as a Graphviz graph: layers, and between them the groups that they make and read."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pydot
from torch.fx import GraphModule

from djpq_nncf.channels import CHANNELS_OF, ChannelAnalysis, ChannelGroup, FrozenChannels, Role
from djpq_nncf.cost import MacOperator
from djpq_nncf.report._alike import Alike, collapse, merge_alike
from djpq_nncf.report._group_layers import layers_of, layers_of_groups, merge_groups, merged_places

_COLOURS: dict[Role, str] = {
    "hidden": "lightblue",
    "residual": "gold",
    "attention_heads": "salmon",
    "query_key_width": "plum",
    "value_width": "palegreen",
}

Edge = tuple[bool, str, int]
"""Of a layer: whether it makes (else reads) a group, the group, slices for each channel."""


def groups_to_dot(analysis: ChannelAnalysis, model: GraphModule) -> str:
    """The graph in DOT.

    A box ``layer NAME`` for each layer, a coloured ellipse ``group NAME`` for each group. An edge goes from a layer to
    the group that its output channels are in, and from a group to the layers that read it; its label is the number of
    slices for each channel, where that is more than one. Dashed boxes have channels that stay. Groups that differ only
    in the number of the block they are in are one ellipse, their layers one box each: ``layers.{0-11}.fc``.

    Args:
        analysis: the channel groups.
        model: the captured graph that was analysed.
    """
    found = layers_of_groups(analysis, model)
    groups = merge_groups(found)
    name_of = {name: f"group {alike.name}" for alike in groups for name in alike.names}
    edges: defaultdict[str, list[Edge]] = defaultdict(list)
    for one in found:
        for layer, slices in one.made_by.items():
            edges[layer].append((True, name_of[one.group.name], slices))
        for layer, slices in one.read_by.items():
            edges[layer].append((False, name_of[one.group.name], slices))
    stays: defaultdict[str, list[FrozenChannels]] = defaultdict(list)
    for entry in analysis.frozen:
        stays[entry.layer].append(entry)
    layers = [
        Alike.one((_title(operator), tuple(edges[operator.layer]), _whats(stays[operator.layer])), operator.layer)
        for operator in layers_of(model)
    ]
    graph = pydot.Dot("channel_groups", graph_type="digraph", rankdir="LR")
    graph.set_node_defaults(fontname="sans-serif", fontsize="10")
    merged = merge_alike(layers)
    for alike in merged:
        reasons = [f"{entry.what} stay: {entry.reason}" for name in alike.names for entry in stays[name]]
        graph.add_node(_layer_node(alike, list(dict.fromkeys(reasons))))
    for alike in groups:
        graph.add_node(_group_node(alike, analysis.groups[alike.names[0]]))
    for alike in merged:
        for makes, group, slices in dict.fromkeys(edges[alike.names[0]]):
            ends = (f"layer {alike.name}", group)
            graph.add_edge(_edge(*(ends if makes else ends[::-1]), slices))
    return str(graph.to_string())


def _title(operator: MacOperator) -> str:
    return f"{operator.kind} {'x'.join(map(str, operator.weight_shape))}"


def _whats(entries: Iterable[FrozenChannels]) -> tuple[str, ...]:
    return tuple(entry.what for entry in entries)


def _layer_node(alike: Alike, reasons: Sequence[str]) -> pydot.Node:
    assert isinstance(alike.kind, tuple)
    title, *_ = alike.kind
    several = f"{alike.count} x " if alike.count > 1 else ""
    node = _node(f"layer {alike.name}", alike.name, f"{several}{title}", shape="box")
    if reasons:
        node.set("style", "dashed")
        node.set("tooltip", _quoted("\n".join(reasons)))
    return node


def _group_node(alike: Alike, group: ChannelGroup) -> pydot.Node:
    several = f"{alike.count} x " if alike.count > 1 else ""
    along = collapse(name for relation, _, name in merged_places(alike) if relation == "along with")
    lines = (alike.name, f"{several}{group.size} {CHANNELS_OF[group.role]}", *(f"with {name}" for name in along))
    return _node(f"group {alike.name}", *lines, shape="ellipse", style="filled", fillcolor=_COLOURS[group.role])


def _node(name: str, *lines: str, **attributes: Any) -> pydot.Node:
    return pydot.Node(_quoted(name), label=_quoted("\n".join(lines)), **attributes)


def _edge(source: str, target: str, slices: int) -> pydot.Edge:
    edge = pydot.Edge(_quoted(source), _quoted(target))
    if slices > 1:
        edge.set("label", str(slices))
    return edge


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
