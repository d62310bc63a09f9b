# SPDX-License-Identifier: Apache-2.0
"""From ids, ties and reasons to channel groups."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._groups import (
    FIXED,
    ChannelAnalysis,
    ChannelGroup,
    FrozenChannels,
    GatePoint,
    Member,
    Producer,
    Role,
)
from djpq_nncf.channels._labels import Labels, TensorLabels, varying_axes

Place = tuple[str, int]
"""Parameter and dimension."""


class Summary:
    """From ids, ties and reasons to groups."""

    def __init__(self, context: RuleContext, roles: frozenset[Role]) -> None:
        self._context = context
        self._channels = context.channels
        self._frozen = context.channels.frozen_leaves()
        self._cache: dict[int, Labels] = {}
        self._kept_alive: list[Labels] = []  # ids of arrays are unique while they live
        self._places = self._find_places()
        self._producer = self._find_producers()
        self._roles = self._find_roles()
        self._freeze_ungated(self._gate_points())
        for channel, role in self._roles.items():
            if role not in roles:
                self._frozen.setdefault(channel, f"'pruning.{role}' is off")
        self._new_id = np.full(len(self._channels) + 1, FIXED, dtype=np.int64)  # the last one is for -1
        self._owner: list[str] = []
        self._groups = self._form_groups()

    def result(self) -> ChannelAnalysis:
        context = self._context
        ragged: set[str] = set()
        node_labels: dict[str, TensorLabels] = {}
        for node in context.known_values:
            labels = self._value_labels(node)
            if labels is None:
                ragged.add(node.name)
            else:
                node_labels[node.name] = labels
        return ChannelAnalysis(
            groups=self._groups,
            node_labels=node_labels,
            parameter_labels={name: self._translate_all(labels) for name, labels in context.parameters.items()},
            gate_points=tuple(
                GatePoint(name, dim, gated)
                for name, dim, leaves in self._gate_points()
                if ((gated := self._new_id[leaves]) != FIXED).any()
            ),
            frozen=tuple(self._frozen_layers()),
            channel_group=tuple(self._owner),
            run_on_open=frozenset(node.name for node in context.run_on_open),
            regathers={
                name: regather
                for name, regather in context.regathers.items()
                if name not in ragged and self._must_gather(name, ragged, node_labels)
            },
            products={
                name: tuple(self._translate_all(labels) for labels in products)
                for name, products in context.products.items()
            },
        )

    def _must_gather(self, name: str, ragged: set[str], node_labels: dict[str, TensorLabels]) -> bool:
        """Whether the operator itself would do something else once channels are gone."""
        source = self._context.moved_from(name).name
        if source in ragged:
            return True
        chosen = [node_labels[source][dim] for dim in self._context.reordering.get(name, ())]
        return any(ids is not None and (ids != FIXED).any() for ids in chosen)

    def _leaves(self, ids: Labels) -> Labels:
        """[..., k] channels; every array of ids is asked for several times."""
        if id(ids) not in self._cache:
            self._cache[id(ids)] = self._channels.leaves(ids)
            self._kept_alive.append(ids)
        return self._cache[id(ids)]

    def _find_places(self) -> dict[int, Counter[Place]]:
        """Leaf channel -> the parameters and dimensions it lives in, with the number of slices."""
        places: dict[int, Counter[Place]] = defaultdict(Counter)
        self._partners: dict[int, set[int]] = defaultdict(set)
        for name, labels in self._context.parameters.items():
            for dim, ids in enumerate(labels):
                if ids is not None:
                    leaves = self._leaves(ids)
                    for channel, count in zip(*_count(leaves), strict=True):
                        places[channel][name, dim] += count
                    if leaves.shape[-1] > 1:
                        for row in np.unique(leaves, axis=0).tolist():
                            for channel in row:
                                self._partners[channel].update(row)
        return places

    def _find_producers(self) -> dict[int, str]:
        """Leaf channel -> the layer that produces it first, in the order of the graph."""
        producer: dict[int, str] = {}
        for one in self._context.producers:
            for channel in _count(self._leaves(one.ids))[0]:
                producer.setdefault(channel, one.layer)
        return producer

    def _find_roles(self) -> dict[int, Role]:
        roles: dict[int, Role] = {}
        # queries turned by a rotary embedding are sums too: what attention says comes first
        for ids, role in sorted(self._context.roles, key=lambda marked: marked[1] == "residual"):
            for channel in _count(self._leaves(ids))[0]:
                roles.setdefault(channel, role)
        return defaultdict(lambda: "hidden", roles)

    def _gate_points(self) -> Iterator[tuple[str, int, Labels]]:
        """Parameter, dimension and leaves [n, k] of the channels on which gates act there.

        A gate acts on the weight that mixes its channels. Channels that only a product of two activations sums over
        (query and key) are gated where they are produced, in one of the two.
        """
        points: dict[Place, Labels] = {}
        for consumer in self._context.consumers:
            ids = self._context.parameters[consumer.weight][consumer.dim]
            assert ids is not None
            points[consumer.weight, consumer.dim] = self._leaves(ids)
        gated = {channel for leaves in points.values() for channel in _count(leaves)[0]}
        contracted = {c for ids in self._context.contracted for c in _count(self._leaves(ids))[0]} - gated
        for (name, dim), leaves in points.items():
            yield name, dim, leaves
        if contracted:
            yield from self._output_gates(contracted)

    def _output_gates(self, contracted: set[int]) -> Iterator[tuple[str, int, Labels]]:
        """The last rows produced for each contracted channel: keys, also where one layer makes queries and keys."""
        last: dict[int, Producer] = {}
        for producer in self._context.producers:
            for channel in contracted.intersection(_count(self._leaves(producer.ids))[0]):
                last[channel] = producer
        for producer in dict.fromkeys(last.values()):
            leaves = self._leaves(producer.ids)
            here = [channel for channel, one in last.items() if one is producer]
            chosen = np.where(np.isin(leaves, here), leaves, FIXED)
            chosen[_repeated_later(leaves)] = FIXED
            for name, dim in producer.places:
                yield name, dim, chosen

    def _freeze_ungated(self, points: Iterator[tuple[str, int, Labels]]) -> None:
        gated = {channel for _, _, leaves in points for channel in _count(leaves)[0]}
        for channel in self._producer:
            if channel not in gated:
                self._frozen.setdefault(channel, "no layer with a weight reads it, so no gate can act on it")

    def _form_groups(self) -> dict[str, ChannelGroup]:
        by_signature: dict[tuple[frozenset[tuple[Place, int]], Role, frozenset[int]], list[int]] = defaultdict(list)
        for channel in self._producer:
            if channel not in self._frozen:
                places = frozenset(self._places[channel].items())
                partners = frozenset(self._partners.get(channel, ())) - {channel}
                by_signature[places, self._roles[channel], partners].append(channel)
        groups: dict[str, ChannelGroup] = {}
        for (places, role, _), members in by_signature.items():
            members.sort()
            name = _free_name(_group_name(self._producer[members[0]], role), groups)
            span = range(len(self._owner), len(self._owner) + len(members))
            ordered = tuple(Member(*place, count) for place, count in sorted(places))
            groups[name] = ChannelGroup(name, span, ordered, role)
            self._new_id[members] = np.arange(span.start, span.stop)
            self._owner.extend([name] * len(members))
        return groups

    def _translate(self, ids: Labels | None) -> Labels | None:
        if ids is None:
            return None
        labels = self._new_id[self._leaves(ids)]
        used = (labels != FIXED).any(axis=tuple(range(labels.ndim - 1)))
        used[0] |= not used.any()
        return labels[..., used]

    def _translate_all(self, labels: TensorLabels | list[Labels | None]) -> TensorLabels:
        return tuple(self._translate(ids) for ids in labels)

    def _value_labels(self, node: Node) -> TensorLabels | None:
        """Labels by dimension, or None for a value whose remainder need not be a grid."""
        columns: list[list[Labels]] = [[] for _ in node.meta["val"].shape]
        for factor in self._context.factors(node):
            labels = self._translate(factor.ids)
            assert labels is not None
            for column in np.moveaxis(labels, -1, 0):
                varying = varying_axes(column)
                if len(varying) > 1:
                    return None
                axis = varying[0] if varying else 0
                if factor.dims:
                    along = np.moveaxis(column, axis, 0).reshape(column.shape[axis], -1)[:, 0]
                    columns[factor.dims[axis]].append(along)
        return tuple(np.stack(c, axis=-1) if c else None for c in columns)

    def _frozen_layers(self) -> Iterator[FrozenChannels]:
        for producer in self._context.producers:
            reasons: Counter[str] = Counter()
            for leaves in self._leaves(producer.ids).tolist():
                present = [leaf for leaf in leaves if leaf >= 0]
                if all(leaf in self._frozen for leaf in present):
                    reasons[self._frozen[present[0]]] += 1
            for reason, count in reasons.items():
                yield FrozenChannels(producer.layer, count, reason)


def _count(leaves: Labels) -> tuple[list[int], list[int]]:
    """Channels among leaves [n, k], and in how many of the n entries each is."""
    flat = np.sort(leaves.reshape(-1, leaves.shape[-1]), axis=-1)
    flat[:, 1:][flat[:, 1:] == flat[:, :-1]] = FIXED
    found, counts = np.unique(flat, return_counts=True)
    return found[found >= 0].tolist(), counts[found >= 0].tolist()


def _repeated_later(leaves: Labels) -> np.ndarray:
    """Which entries of [n, k] come again further on."""
    _, last = np.unique(leaves[::-1], axis=0, return_index=True)
    repeated = np.ones(len(leaves), dtype=bool)
    repeated[len(leaves) - 1 - last] = False
    return repeated


def _group_name(layer: str, role: Role) -> str:
    return layer if role in ("hidden", "residual") else f"{layer}/{role}"


def _free_name(name: str, taken: dict[str, ChannelGroup]) -> str:
    """The name, with a number where channels of one layer fall into several groups."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free
