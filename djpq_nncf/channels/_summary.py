# SPDX-License-Identifier: Apache-2.0
"""From ids, ties and reasons to channel groups."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from math import prod

import numpy as np
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._groups import (
    FIXED,
    ROLES,
    ChannelAnalysis,
    ChannelGroup,
    FrozenChannels,
    GatePoint,
    Member,
    OpenCall,
    Role,
)
from djpq_nncf.channels._labels import Labels, TensorLabels, varying_axes

Place = tuple[str, int]
"""Parameter and dimension."""


class Summary:
    """From ids, ties and reasons to groups.

    Arrays over channels are indexed by the representative of a set of tied channels.
    """

    def __init__(self, context: RuleContext, roles: frozenset[Role]) -> None:
        self._context = context
        self._channels = context.channels
        self._cache: dict[int, tuple[Labels, Labels]] = {}
        self._reason, self._reasons = context.channels.frozen_leaves()
        self._freeze_uneven_parts()
        self._producer = self._find_producers()
        self._role = self._find_roles()
        self._gate_points = list(self._find_gate_points())
        gated = self._mask([leaves for _, _, leaves in self._gate_points])
        self._freeze(~gated, "no layer with a weight reads it, so no gate can act on it")
        for role in ROLES:
            if role not in roles:
                self._freeze(self._role == ROLES.index(role), f"'pruning.dimensions.{role}' is off")
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
            parameter_labels={
                name: self._translate_all(context.parameters[first])
                for name, first in context.canonical_names.items()
                if first in context.parameters
            },
            gate_points=tuple(
                GatePoint(name, dim, gated)
                for name, dim, leaves in self._gate_points
                if ((gated := self._new_id[leaves]) != FIXED).any()
            ),
            frozen=tuple(self._frozen_layers()),
            channel_group=tuple(self._owner),
            run_on_open={
                name: OpenCall(
                    {position: self._translate_dims(dims) for position, dims in call.inputs.items()},
                    self._translate_dims(call.output),
                )
                for name, call in context.run_on_open.items()
            },
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
        source = self._context.moved_from(name)
        if source.name in ragged:
            return True
        if source.op == "get_attr":
            first = self._context.canonical_names[str(source.target)]
            labels = self._translate_all(self._context.parameters[first])
        else:
            labels = node_labels[source.name]
        chosen = [labels[dim] for dim in self._context.reordering.get(name, ())]
        return any(ids is not None and (ids != FIXED).any() for ids in chosen)

    def _leaves(self, ids: Labels) -> Labels:
        """[..., k] channels; every array of ids is asked for several times."""
        if id(ids) not in self._cache:
            self._cache[id(ids)] = ids, self._channels.leaves(ids)  # the ids too: while they live, so does their id()
        return self._cache[id(ids)][1]

    def _mask(self, arrays: Iterable[Labels]) -> np.ndarray:
        """Which channels are among some leaves."""
        mask = np.zeros(len(self._channels) + 1, dtype=bool)  # the last one is for -1
        for leaves in arrays:
            mask[leaves] = True
        return mask[:-1]

    def _freeze(self, chosen: np.ndarray, reason: str) -> None:
        self._reason[chosen & (self._reason < 0)] = len(self._reasons)
        self._reasons.append(reason)

    def _freeze_uneven_parts(self) -> None:
        """Of a part that is no grid (a diagonal) nothing might be left though something of every group is.

        Groups keep a channel each, so something is left of rows that stand for one channel, of those that stand for
        every pair of some channels, and so on.
        """
        for ids in self._context.parts:
            leaves = _without_repetition(self._leaves(ids))
            for rows in _by_number_of_leaves(leaves).values():
                if len(np.unique(rows, axis=0)) == prod(len(np.unique(column)) for column in rows.T):
                    break
            else:
                self._freeze(self._mask([leaves]), "a part of them is taken that is no grid")

    def _find_producers(self) -> Labels:
        """For each channel the position of the layer that produces it first, in the order of the graph, or -1."""
        found = np.full(len(self._channels), -1, dtype=np.int64)
        for position, producer in reversed(list(enumerate(self._context.producers))):
            found[_present(self._leaves(producer.ids))] = position
        return found

    def _find_roles(self) -> Labels:
        """For each channel its role as a position in ROLES."""
        found = np.full(len(self._channels), ROLES.index("hidden"), dtype=np.int64)
        # queries turned by a rotary embedding are sums too: what attention says comes last and stays
        first_said_last = list(reversed(self._context.roles))
        for ids, role in sorted(first_said_last, key=lambda marked: marked[1] != "residual"):
            found[_present(self._leaves(ids))] = ROLES.index(role)
        return found

    def _find_gate_points(self) -> Iterator[tuple[str, int, Labels]]:
        """Parameter, dimension and leaves [n, k] of the channels on which gates act there.

        A gate acts on the weight that mixes its channels. Channels that only a product of two activations sums over
        (query and key) are gated where they are produced, in one of the two.
        """
        points: dict[Place, Labels] = {}
        for consumer in self._context.consumers:
            ids = self._context.parameters[self._context.canonical_names[consumer.weight]][consumer.dim]
            assert ids is not None
            points[consumer.weight, consumer.dim] = self._leaves(ids)
        for (name, dim), leaves in points.items():
            yield name, dim, leaves
        contracted = self._mask(self._leaves(ids) for ids in self._context.contracted) & ~self._mask(points.values())
        if contracted.any():
            yield from self._output_gates(contracted)

    def _output_gates(self, contracted: np.ndarray) -> Iterator[tuple[str, int, Labels]]:
        """The last rows produced for each contracted channel: keys, also where one layer makes queries and keys."""
        last = np.full(len(contracted) + 1, -1, dtype=np.int64)
        for position, producer in enumerate(self._context.producers):
            last[:-1][contracted & self._mask([self._leaves(producer.ids)])] = position
        for position in np.unique(last[last >= 0]).tolist():
            producer = self._context.producers[position]
            leaves = self._leaves(producer.ids)
            chosen = np.where(last[leaves] == position, leaves, FIXED)
            chosen[_repeated_later(leaves)] = FIXED
            for name, dim in producer.places:
                yield name, dim, chosen

    def _form_groups(self) -> dict[str, ChannelGroup]:
        """Channels with the same role, in the same places, together with the same others."""
        places, partners = self._find_places()
        free = np.flatnonzero((self._producer >= 0) & (self._reason < 0))
        by_signature: dict[tuple[int, bytes, bytes], list[int]] = defaultdict(list)
        for channel in free[np.argsort(self._producer[free], kind="stable")].tolist():
            signature = int(self._role[channel]), places[channel].tobytes(), partners.get(channel, _NOBODY).tobytes()
            by_signature[signature].append(channel)
        groups: dict[str, ChannelGroup] = {}
        for members in by_signature.values():
            members.sort()
            if len(members) == 1:
                self._freeze(np.arange(len(self._reason)) == members[0], "no other channel is in the same places")
                continue
            role = ROLES[self._role[members[0]]]
            layer = self._context.producers[self._producer[members[0]]].layer
            name = _free_name(layer if role in ("hidden", "residual") else f"{layer}/{role}", groups)
            span = range(len(self._owner), len(self._owner) + len(members))
            inhabited = sorted(
                (*self._place_names[place], count)
                for place, count in places[members[0]].tolist()
                if place < len(self._place_names)
            )
            groups[name] = ChannelGroup(name, span, tuple(Member(*member) for member in inhabited), role)
            self._new_id[members] = np.arange(span.start, span.stop)
            self._owner.extend([name] * len(members))
        return groups

    def _find_places(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """Channel -> [places, 2] positions in ``_place_names``, numbers of slices; channel -> those it goes with."""
        self._place_names: list[Place] = []
        rows: list[np.ndarray] = []
        pairs: list[np.ndarray] = []
        for name, labels in self._context.parameters.items():
            for dim, ids in enumerate(labels):
                if ids is None:
                    continue
                leaves = self._leaves(ids)
                found, counts = np.unique(_without_repetition(leaves), return_counts=True)
                rows.append(np.stack([found, np.full(len(found), len(self._place_names)), counts], axis=1))
                self._place_names.append((name, dim))
                for first, second in itertools.permutations(range(leaves.shape[-1]), 2):
                    pairs.append(leaves[:, [first, second]])
        slices = itertools.count(len(self._place_names))
        for ids in self._context.parts:  # so that something of a part stays: not the first ones
            for leaves in _by_number_of_leaves(_without_repetition(self._leaves(ids))).values():
                found, counts = np.unique(leaves, return_counts=True)
                rows.append(np.stack([found, np.full(len(found), next(slices)), counts], axis=1))
        return _by_first_column(rows), _by_first_column(pairs)

    def _translate(self, ids: Labels | None) -> Labels | None:
        if ids is None:
            return None
        labels = self._new_id[self._leaves(ids)]
        used = (labels != FIXED).any(axis=tuple(range(labels.ndim - 1)))
        used[0] |= not used.any()
        return labels[..., used]

    def _translate_all(self, labels: TensorLabels | list[Labels | None]) -> TensorLabels:
        return tuple(self._translate(ids) for ids in labels)

    def _translate_dims(self, dims: Mapping[int, Labels]) -> dict[int, Labels]:
        """Labels by dimension, where any channel can go."""
        translated = {dim: self._translate(ids) for dim, ids in dims.items()}
        return {dim: ids for dim, ids in translated.items() if ids is not None and (ids != FIXED).any()}

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
        reason = np.append(self._reason, -1)  # for -1
        for producer in self._context.producers:
            leaves = self._leaves(producer.ids)
            stays = ((reason[leaves] >= 0) | (leaves < 0)).all(axis=-1)
            found, counts = np.unique(reason[leaves[stays, 0]], return_counts=True)
            for index, count in zip(found.tolist(), counts.tolist(), strict=True):
                yield FrozenChannels(producer.layer, count, self._reasons[index])
            # what can go in one respect only: with its head, say, but not by its width
            partly = np.unique(leaves[~stays])
            partly = partly[(partly >= 0) & (reason[partly] >= 0)]
            kinds, counts = np.unique(np.stack([reason[partly], self._role[partly]]), axis=1, return_counts=True)
            for (index, role), count in zip(kinds.T.tolist(), counts.tolist(), strict=True):
                yield FrozenChannels(producer.layer, count, self._reasons[index], ROLES[role])


_NOBODY = np.empty(0, dtype=np.int64)


def _present(leaves: Labels) -> Labels:
    return leaves[leaves >= 0]


def _without_repetition(leaves: Labels) -> Labels:
    """Leaves [n, k] with each channel once in a row."""
    leaves = np.sort(leaves, axis=-1)
    leaves[:, 1:][leaves[:, 1:] == leaves[:, :-1]] = FIXED
    return leaves


def _by_number_of_leaves(leaves: Labels) -> dict[int, Labels]:
    """Rows of leaves [n, k] without repetition, those of as many channels together, as [m, number of channels]."""
    numbers = (leaves >= 0).sum(axis=-1)
    return {int(n): np.sort(leaves[numbers == n], axis=-1)[:, leaves.shape[-1] - n :] for n in np.unique(numbers)}


def _by_first_column(rows: list[np.ndarray]) -> dict[int, np.ndarray]:
    """Different rows, by the channel in their first column; the other columns in order."""
    if not rows:
        return {}
    table = np.concatenate(rows)
    table = table[(table[:, :2] >= 0).all(axis=1)]
    if not len(table):
        return {}
    table = table[np.lexsort(table.T[::-1])]
    new = np.ones(len(table), dtype=bool)
    new[1:] = (table[1:] != table[:-1]).any(axis=1)
    table = table[new]
    channels, starts = np.unique(table[:, 0], return_index=True)
    return dict(zip(channels.tolist(), np.split(table[:, 1:], starts[1:]), strict=True))


def _repeated_later(leaves: Labels) -> np.ndarray:
    """Which entries of [n, k] come again further on."""
    _, last = np.unique(leaves[::-1], axis=0, return_index=True)
    repeated = np.ones(len(leaves), dtype=bool)
    repeated[len(leaves) - 1 - last] = False
    return repeated


def _free_name(name: str, taken: dict[str, ChannelGroup]) -> str:
    """The name, with a number where channels of one layer fall into several groups."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free
