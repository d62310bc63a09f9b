# SPDX-License-Identifier: Apache-2.0
"""Channel groups by layer: which layers make the channels of a group, which read them, and what goes along."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from djpq_nncf.channels import ChannelAnalysis, ChannelGroup
from djpq_nncf.channels.rules._arguments import argument
from djpq_nncf.cost import MacOperator, find_embeddings, find_mac_operators
from djpq_nncf.report._alike import Alike, merge_alike

_OF_A_LAYER = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class GroupLayers:
    """A channel group, by layer.

    Attributes:
        group: the group.
        made_by: layer -> slices of its weight for each channel of the group, along its output channels.
        read_by: layer -> likewise, along its input channels; a depthwise convolution makes and reads them.
        along: normalisations and other parameters that lose the same channels -> likewise.
    """

    group: ChannelGroup
    made_by: Mapping[str, int]
    read_by: Mapping[str, int]
    along: Mapping[str, int]


@dataclass(frozen=True)
class _Layer:
    operator: MacOperator
    names: frozenset[str]
    is_depthwise: bool


def layers_of(model: GraphModule) -> tuple[MacOperator, ...]:
    """Embeddings and layers of a captured graph that have a weight."""
    return (*find_embeddings(model), *(operator for operator in find_mac_operators(model) if operator.weight))


def layers_of_groups(analysis: ChannelAnalysis, model: GraphModule) -> list[GroupLayers]:
    """The groups in the order of the network, and so are their layers.

    Args:
        analysis: the channel groups.
        model: the captured graph that was analysed.
    """
    names = _names_of_tensors(model)
    nodes = {node.name: node for node in model.graph.nodes}
    layers = [
        _Layer(operator, names[operator.weight], _is_depthwise(nodes[operator.node], operator))
        for operator in layers_of(model)
        if operator.weight is not None
    ]
    return [_layers_of(group, layers, names) for group in analysis.groups.values()]


def merge_groups(layers: Iterable[GroupLayers]) -> list[Alike]:
    """Groups that differ only in the number of the block they are in as one; see :func:`merged_places`."""
    items = []
    for one in layers:
        related = [
            (relation, slices, name)
            for relation, names in (("made by", one.made_by), ("read by", one.read_by), ("along with", one.along))
            for name, slices in names.items()
        ]
        kind = one.group.role, one.group.size, tuple((relation, slices) for relation, slices, _ in related)
        items.append(Alike.one(kind, one.group.name, *(name for _, _, name in related)))
    return merge_alike(items)


def merged_places(alike: Alike) -> list[tuple[str, int, str]]:
    """Of merged groups ("made by", "read by" or "along with", slices for each channel, layer or parameter)."""
    assert isinstance(alike.kind, tuple)
    *_, parts = alike.kind
    return [(relation, slices, name) for (relation, slices), name in zip(parts, alike.paths[1:], strict=True)]


def _names_of_tensors(model: GraphModule) -> dict[str, frozenset[str]]:
    """Name of a parameter or buffer -> all names of that tensor, in the order of the network."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names[id(tensor)].append(name)
    return {name: frozenset(same) for same in names.values() for name in same}


def _is_depthwise(node: Node, operator: MacOperator) -> bool:
    return operator.kind.startswith("conv") and operator.weight_shape[1] == 1 and argument(node, "groups") > 1


def _layers_of(group: ChannelGroup, layers: Sequence[_Layer], names: Mapping[str, frozenset[str]]) -> GroupLayers:
    made_by: dict[str, int] = {}
    read_by: dict[str, int] = {}
    along: dict[str, int] = {}
    slices = {(member.parameter, member.dim): member.multiplicity for member in group.members}
    for layer in layers:
        operator = layer.operator
        for dim, side in ((operator.output_dim, made_by), (operator.input_dim, read_by)):
            for name in layer.names:
                if (name, dim) in slices:
                    side[operator.layer] = slices[name, dim]
                    if layer.is_depthwise:
                        read_by[operator.layer] = 1
    weights = frozenset[str]().union(*(layer.names for layer in layers))
    order = {name: position for position, name in enumerate(names)}
    for parameter, dim in sorted(slices, key=lambda place: order[place[0]]):
        path, _, attribute = parameter.rpartition(".")
        name = path if attribute in _OF_A_LAYER else parameter
        if parameter not in weights and name not in made_by:  # made_by: its bias
            along[name] = slices[parameter, dim]
    return GroupLayers(group, made_by, read_by, along)
