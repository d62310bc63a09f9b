# SPDX-License-Identifier: Apache-2.0
"""The dependency analysis: which channels of a captured graph live and die together."""

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
from torch.fx import GraphModule, Node

from djpq_nncf.channels import rules  # noqa: F401  (registers the rules)
from djpq_nncf.channels._context import RuleContext, is_tensor, shape_of, where
from djpq_nncf.channels._groups import FIXED, ChannelAnalysis, ChannelGroup, FrozenChannels, Member
from djpq_nncf.channels._labels import Labels, TensorLabels
from djpq_nncf.channels._registry import find_rule

Signature = tuple[tuple[str, int, int], ...]


def analyse_channels(model: GraphModule, *, is_prunable: Callable[[str], bool] = lambda layer: True) -> ChannelAnalysis:
    """Group the channels of a captured graph that must be kept or removed together.

    Args:
        model: a captured graph.
        is_prunable: says of a layer, by the name users see, whether its output channels may be removed.

    Returns:
        Groups, labels of every value and parameter, and what must stay with the reason.
    """
    context = RuleContext()
    for node in model.graph.nodes:
        _apply_rule(node, context)
    for layer, ids in context.producers:
        if not is_prunable(layer):
            context.channels.freeze(ids, f"'{layer}' is excluded by the configuration")
        elif len(ids) == 1:
            context.channels.freeze(ids, f"'{layer}' has a single channel")
    context.freeze_contested_parameters(model.graph)
    return _summarise(context)


def _apply_rule(node: Node, context: RuleContext) -> None:
    if node.op in ("placeholder", "get_attr"):
        return
    if node.op == "output":
        context.freeze_inputs(node, "is an output of the network")
        return
    rule = find_rule(node)
    if rule is not None:
        rule(node, context)
    elif _reads_only_sizes(node, context):
        return
    else:
        context.freeze_inputs(node, where(node, "has no channel rule"))


def _reads_only_sizes(node: Node, context: RuleContext) -> bool:
    """Integer arithmetic on sizes, and the size of a dimension without channels."""
    if isinstance(node.meta.get("val"), (int, bool)):
        sources = [source for source in node.all_input_nodes if is_tensor(source)]
        if not sources:
            return True
        dim = node.args[1] if len(node.args) > 1 else None
        return isinstance(dim, int) and context.labels(sources[0])[dim] is None
    return False


def _summarise(context: RuleContext) -> ChannelAnalysis:
    channels = context.channels
    parameters = _parameter_labels(context)
    consumed = {(consumer.weight, consumer.dim) for consumer in context.consumers}
    places: dict[int, Counter[tuple[str, int]]] = defaultdict(Counter)
    for name, labels in parameters.items():
        for dim, ids in enumerate(labels):
            for root in channels.roots(ids).tolist() if ids is not None else ():
                places[root][name, dim] += 1
    frozen = channels.frozen_roots()
    for root, found in places.items():
        if not consumed & found.keys():
            frozen.setdefault(root, "no layer with a weight reads it, so no gate can act on it")

    by_signature: dict[Signature, list[int]] = defaultdict(list)
    for root in sorted(places):
        if root not in frozen:
            by_signature[tuple(sorted((*place, count) for place, count in places[root].items()))].append(root)

    new_id = np.full(len(channels), FIXED, dtype=np.int64)
    groups: dict[str, ChannelGroup] = {}
    owner: list[str] = []
    for signature, members in by_signature.items():
        name = _free_name(_first_layer(context, members[0]), groups)
        span = range(len(owner), len(owner) + len(members))
        groups[name] = ChannelGroup(name, span, tuple(Member(*place) for place in signature))
        new_id[members] = np.arange(span.start, span.stop)
        owner.extend([name] * len(members))

    def translate(ids: Labels | None) -> Labels | None:
        return None if ids is None else new_id[channels.roots(ids)]

    def translate_all(labels: TensorLabels) -> TensorLabels:
        return tuple(translate(ids) for ids in labels)

    return ChannelAnalysis(
        groups=groups,
        node_labels={
            node.name: translate_all(labels)
            for node, labels in context.values.items()
            if isinstance(labels, tuple) and node.op != "get_attr"
        },
        parameter_labels={name: translate_all(labels) for name, labels in parameters.items()},
        consumers=tuple(context.consumers),
        frozen=tuple(_frozen_layers(context, frozen)),
        channel_group=tuple(owner),
    )


def _parameter_labels(context: RuleContext) -> dict[str, TensorLabels]:
    """Labels by state-dict name; several nodes may read one parameter."""
    parameters = dict(context.module_parameters)
    for node, labels in context.values.items():
        if node.op != "get_attr" or not isinstance(labels, tuple):
            continue
        name = str(node.target)
        known = parameters.get(name, (None,) * len(shape_of(node)))
        for first, second in zip(known, labels, strict=True):
            if first is not None and second is not None:
                context.channels.tie(first, second)
        parameters[name] = tuple(a if a is not None else b for a, b in zip(known, labels, strict=True))
    return parameters


def _first_layer(context: RuleContext, root: int) -> str:
    """The layer that produces the channel first, in the order of the graph."""
    for layer, ids in context.producers:
        if ids[0] <= root <= ids[-1]:
            return layer
    raise KeyError(root)


def _free_name(layer: str, taken: dict[str, ChannelGroup]) -> str:
    """The layer's name; a layer whose channels fall into several groups counts them."""
    name, number = layer, 1
    while name in taken:
        number += 1
        name = f"{layer}#{number}"
    return name


def _frozen_layers(context: RuleContext, frozen: dict[int, str]) -> list[FrozenChannels]:
    result: list[FrozenChannels] = []
    for layer, ids in context.producers:
        reasons: Counter[str] = Counter()
        for root in context.channels.roots(ids).tolist():
            if root in frozen:
                reasons[frozen[root]] += 1
        result.extend(FrozenChannels(layer, count, reason) for reason, count in reasons.items())
    return result
