# SPDX-License-Identifier: Apache-2.0
"""What a channel rule sees and may say: the labels of its inputs, ties, freezes, and the labels of its output."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.fx import Graph, GraphModule, Node

from djpq_nncf.capture import free_dims, layer_name
from djpq_nncf.channels._groups import Consumer, OpenCall, Producer, Role
from djpq_nncf.channels._labels import ChannelSet, Labels, TensorLabels, all_labels
from djpq_nncf.channels._movement import Factor, IndexMap, Regather, follow, moved
from djpq_nncf.channels._nodes import is_tensor, may_shrink, ranks, shape_of, where


class RuleContext:
    """Labels of every value seen so far; rules read from it and write to it."""

    def __init__(self, model: GraphModule) -> None:
        self.channels = ChannelSet()
        self._free_dims = free_dims(model)
        self.canonical_names = _canonical_names(model)
        self.parameters: dict[str, list[Labels | None]] = {}
        self.producers: list[Producer] = []
        self.consumers: list[Consumer] = []
        self.contracted: list[Labels] = []
        self.roles: list[tuple[Labels, Role]] = []
        self.run_on_open: dict[str, OpenCall] = {}
        self.parts: list[Labels] = []
        self.products: dict[str, tuple[TensorLabels, ...]] = {}
        self.regathers: dict[str, Regather] = {}
        self.reordering: dict[str, tuple[int, ...]] = {}
        self._factors: dict[Node, list[Factor] | list[list[Factor]]] = {}
        self._maps: dict[Node, IndexMap | list[IndexMap]] = {}
        self._sources: dict[str, Node] = {}
        self._layer_weights: dict[str, set[Node]] = {}
        self._read: set[Node] = set()

    def start(self) -> None:
        """The next operator has read nothing yet."""
        self._read.clear()

    # What rules read

    def labels(self, node: Node) -> TensorLabels:
        """Which channels live along each dimension of a tensor-valued node.

        A dimension that was torn apart (channels viewed as heads and widths) is settled by this: from here on what
        remains of it has to be a grid.
        """
        self._read.add(node)
        return self._per_dimension(node, self._settled(node))

    def ignore(self, *nodes: Node) -> None:
        """The operator does not depend on how many channels these values have."""
        self._read.update(nodes)

    def parameter(self, node: Node, dim: int) -> Labels:
        """Labels of one dimension of the parameter or buffer that a get_attr node reads."""
        assert node.op == "get_attr", node
        self._read.add(node)
        return self.module_parameter(str(node.target), shape_of(node), dim)

    def module_parameter(self, name: str, shape: Sequence[int], dim: int = 0) -> Labels:
        """As :meth:`parameter`, for a parameter of a module that the graph calls."""
        known = self.parameters.setdefault(self.canonical_names.get(name, name), [None] * len(shape))
        if known[dim] is None:
            known[dim] = self.channels.new(int(shape[dim]))
        result = known[dim]
        assert result is not None
        return result

    # What rules say

    def set(self, node: Node, labels: Sequence[Labels | None]) -> None:
        """Say which channels live along each dimension of the node's value."""
        self._factors[node] = [Factor((dim,), ids) for dim, ids in enumerate(labels) if ids is not None]

    def set_several(self, node: Node, labels: Sequence[Sequence[Labels | None]]) -> None:
        """As :meth:`set`, for an operator with several outputs."""
        self._factors[node] = [
            [Factor((dim,), ids) for dim, ids in enumerate(one) if ids is not None] for one in labels
        ]

    def tie(self, first: Labels | None, second: Labels | None, reason: str) -> Labels | None:
        """Channels that meet; where one side knows none (it cannot shrink) the other's stay, for ``reason``."""
        if first is not None and second is not None:
            self.channels.tie(first, second)
            return first
        known = first if first is not None else second
        if known is not None:
            self.channels.freeze(known, reason)
        return None

    def produce(self, node: Node, weight: Node, dim: int, bias: Node | None = None) -> Labels:
        """Dimension ``dim`` of ``weight`` (and the bias) runs over the output channels of the layer ``node``."""
        ids = self.parameter(weight, dim)
        self._layer_weights.setdefault(str(weight.target), set()).add(node)
        places = [(str(weight.target), dim)]
        if bias is not None:
            if bias.op == "get_attr":
                places.append((str(bias.target), 0))
            self.tie(ids, self.labels(bias)[-1], where(node, "adds a bias that cannot shrink"))
        self.producers.append(Producer(layer_name(node), ids, tuple(places)))
        return ids

    def consume(self, node: Node, weight: Node, dim: int, incoming: Labels | None) -> None:
        """``node`` mixes its input channels with ``weight`` along ``dim``: a gate can act there."""
        self._layer_weights.setdefault(str(weight.target), set()).add(node)
        ids = self.parameter(weight, dim)
        if self.tie(ids, incoming, where(node, "reads them together with what cannot shrink")) is not None:
            self.consumers.append(Consumer(node.name, str(weight.target), dim))

    def contract(self, node: Node, first: tuple[Node, int], second: tuple[Node, int]) -> None:
        """``node`` sums over products of two activations along these dimensions, whose channels are tied."""
        ids = self.labels(first[0])[first[1]]
        assert ids is not None
        self.contracted.append(ids)
        self.only_open(node, first, second)

    def only_open(self, node: Node, *related: tuple[Node, int], output: Sequence[int] = ()) -> None:
        """``node`` relates channels to each other (statistics, softmax): closed ones must not take part in it.

        Args:
            node: the operator.
            related: inputs of the operator, each with a dimension along which it relates the entries.
            output: dimensions of its result that run over the same channels.
        """
        sources = node.all_input_nodes
        read: list[Node] = []
        torch.fx.node.map_arg((node.args, node.kwargs), read.append)
        call = self.run_on_open.setdefault(node.name, OpenCall({}, {}))
        for source, dim in related:
            ids = self.labels(source)[dim]
            if ids is None:
                continue
            if read.count(source) > 1:
                self.freeze(node, [ids], "relates them to themselves")
            if dim % len(shape_of(source)) in self._free_dims.get(source.name, ()):
                self.freeze(node, [ids], "relates them along a dimension whose size is free")
                continue
            call.inputs.setdefault(sources.index(source), {})[dim % len(shape_of(source))] = ids
        known = related[0][0]
        for dim in output:
            ids = self.labels(known)[dim]
            if ids is not None:
                call.output[dim % len(shape_of(node))] = ids

    def mark(self, ids: Labels | None, role: Role) -> None:
        """What users call these channels."""
        if ids is not None:
            self.roles.append((ids, role))

    def follow(self, node: Node, source: Node, *, reorders: Sequence[int] = ()) -> None:
        """Label the output of an operator that only moves elements of ``source``, by moving their indices.

        Where a dimension with channels is torn apart nothing is decided yet: as long as the pieces are only moved on,
        removal gathers what remains from the tensor before (see ``Regather``). The first operator that computes with
        the pieces, or a movement too involved for that, settles them.

        Args:
            node: the operator.
            source: the value it moves.
            reorders: dimensions of the source along which the operator would do something else on fewer channels
                (selection by position, a shuffle), so that removal has to gather there.
        """
        self._read.add(source)
        if not self._factors_of(source):
            return
        reorders = tuple(dim % len(shape_of(source)) for dim in reorders)
        results, maps = self._moved(node, source, mapped=self._has_channels(source, reorders))
        if not _regatherable(maps) and self._is_torn(source):
            self._settled(source)
            results, maps = self._moved(node, source, mapped=self._has_channels(source, reorders))
        if not _regatherable(maps):
            if self._has_channels(source, reorders):
                self.freeze(node, self.labels(source), "reorders channels together with positions")
            results = [self._settle(node, factors, rank) for factors, rank in zip(results, ranks(node), strict=True)]
            maps = []
        elif self._has_channels(source, reorders):
            self.reordering[node.name] = reorders
        whole = {ids.size for ids in self._sets(self._factors_of(source))}
        for ids in self._sets(factor for factors in results for factor in factors):
            if ids.size < max(whole):
                self.parts.append(ids)
        if isinstance(node.meta["val"], (list, tuple)):
            self._factors[node], self._maps[node] = results, maps
        else:
            self._keep(node, results[0], maps[0] if maps else None)

    def take_output(self, node: Node, source: Node, position: int) -> None:
        """``node`` is one output of an operator with several."""
        self._read.add(source)
        values, maps = self._factors.get(source), self._maps.get(source)
        if values:
            self._keep(node, values[position], maps[position] if maps else None)  # type: ignore[arg-type,index]
            if source.name in self.reordering:
                self.reordering[node.name] = self.reordering[source.name]

    def freeze(self, node: Node, labels: Sequence[Labels | None], what: str) -> None:
        """These channels stay, because of what ``node`` does."""
        self.channels.freeze(all_labels(labels), where(node, what))

    def freeze_inputs(self, node: Node, reason: str) -> None:
        """Every channel that reaches ``node`` stays."""
        self._freeze_values(node.all_input_nodes, reason)

    def freeze_unread(self, node: Node) -> None:
        """Inputs that the rule of an operator did not ask about must stay as they are."""
        unread = [source for source in node.all_input_nodes if source not in self._read]
        self._freeze_values(unread, where(node, "has a rule that says nothing of it"))

    def _freeze_values(self, sources: Sequence[Node], reason: str) -> None:
        for source in sources:
            known = self._factors_of(source) if is_tensor(source) else self._factors.get(source, [])
            for factor in known:
                several = factor if isinstance(factor, list) else [factor]
                self.channels.freeze(all_labels([one.ids for one in several]), reason)

    def freeze_contested_weights(self, graph: Graph) -> None:
        """The weight of a layer may shrink only if every operator that reads it is such a layer."""
        for node in graph.nodes:
            name = str(node.target)
            if node.op == "get_attr" and name in self._layer_weights:
                others = [user for user in node.users if user not in self._layer_weights[name]]
                if others:
                    self.freeze(others[0], self.parameters[self.canonical_names[name]], f"reads '{name}' as it is")

    # Labels after the analysis

    def moved_from(self, name: str) -> Node:
        """The tensor that a moved value is made from."""
        source = self._sources[name]
        while isinstance(source.meta["val"], (list, tuple)):
            (source,) = source.all_input_nodes
        return source

    def factors(self, node: Node) -> list[Factor]:
        """What is known of a value, its torn dimensions as they are."""
        factors = self._factors.get(node, [])
        return [] if factors and isinstance(factors[0], list) else factors  # type: ignore[return-value]

    @property
    def known_values(self) -> list[Node]:
        """Nodes with one tensor value whose labels are known."""
        return [n for n, f in self._factors.items() if is_tensor(n) and n.op != "get_attr" and f]

    def _factors_of(self, node: Node) -> list[Factor]:
        if node.op == "get_attr" and node not in self._factors:
            if not may_shrink(node):
                return []
            self.set(node, [self.parameter(node, dim) for dim in range(len(shape_of(node)))])
        return self._factors.get(node, [])  # type: ignore[return-value]

    def _has_channels(self, node: Node, dims: Sequence[int]) -> bool:
        return any(set(dims).intersection(factor.dims) for factor in self._factors_of(node))

    def _is_torn(self, node: Node) -> bool:
        """Whether there is more to say of a value than one id for each index of a dimension."""
        factors = self._factors_of(node)
        return any(len(f.dims) != 1 for f in factors) or len({f.dims for f in factors}) < len(factors)

    def _settled(self, node: Node) -> list[Factor]:
        if self._is_torn(node):
            self._factors[node] = self._settle(node, self._factors_of(node), len(shape_of(node)))
            self._maps.pop(node, None)
        return self._factors_of(node)

    def _settle(self, node: Node, factors: list[Factor], rank: int) -> list[Factor]:
        columns: list[list[Labels]] = [[] for _ in range(rank)]
        for factor in factors:
            if len(factor.dims) == 1:
                columns[factor.dims[0]].append(factor.ids)
            else:
                reason = where(node, "selects a single channel")
                for axis, ids in self.channels.axes(factor.ids, reason):
                    columns[factor.dims[axis]].append(ids)
        return [Factor((dim,), self.channels.conjunction(ids)) for dim, ids in enumerate(columns) if ids]

    def _per_dimension(self, node: Node, factors: list[Factor]) -> TensorLabels:
        labels: list[Labels | None] = [None] * len(shape_of(node))
        for factor in factors:
            labels[factor.dims[0]] = factor.ids
        return tuple(labels)

    def _moved(self, node: Node, source: Node, *, mapped: bool) -> tuple[list[list[Factor]], list[IndexMap]]:
        """Factors of each output, and once something is torn, where its elements were in the last whole value."""
        results = follow(node, self._factors_of(source), shape_of(source), self._constant)
        results = [self._merged(factors) for factors in results]
        known = self._maps.get(source)
        if not mapped and known is None and not any(len(f.dims) > 1 for factors in results for f in factors):
            return results, []
        base = (
            known
            if isinstance(known, IndexMap)
            else IndexMap.identity(source, shape_of(source), self._free_dims.get(source.name, frozenset()))
        )
        return results, moved(node, base)

    def _merged(self, factors: list[Factor]) -> list[Factor]:
        """Heads and widths that are one dimension again get one id for each index of it."""
        together: dict[tuple[int, ...], list[Labels]] = {}
        for factor in factors:
            together.setdefault(factor.dims, []).append(factor.ids)
        return [
            Factor(dims, ids)
            for dims, columns in together.items()
            for ids in ([self.channels.conjunction(columns)] if len(dims) == 1 else columns)
        ]

    def _keep(self, node: Node, factors: list[Factor], mapped: IndexMap | None) -> None:
        self._factors[node] = factors
        if mapped is not None:
            assert mapped.regather is not None
            self.regathers[node.name] = mapped.regather
            (self._sources[node.name], *_) = node.all_input_nodes
            if any(len(factor.dims) > 1 for factor in factors):
                self._maps[node] = mapped

    def _sets(self, factors: Iterable[Factor]) -> list[Labels]:
        return [np.unique(factor.ids) for factor in factors]

    def _constant(self, node: Node, count: int) -> Labels:
        padding = self.channels.new(count)
        self.channels.freeze(padding, where(node, "pads the channel dimension"))
        return padding


def _canonical_names(model: GraphModule) -> dict[str, str]:
    """Name of a parameter or buffer -> the first name of the same tensor."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _regatherable(maps: Sequence[IndexMap]) -> bool:
    return all(mapped.regather is not None for mapped in maps)
