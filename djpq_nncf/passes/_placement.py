# SPDX-License-Identifier: Apache-2.0
"""Which weights and activations are quantized: NNCF's placement, completed where it leaves an operator out."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from djpq_nncf.capture import to_functional
from djpq_nncf.cost import MacOperator, factors
from djpq_nncf.cost._dataflow import analyse_dataflow, is_floating, moved_values
from djpq_nncf.nncf_bridge import QuantizationPoint, find_quantization_points
from djpq_nncf.passes._sign import find_nonnegative, find_skewed, rectifier_bound

aten = torch.ops.aten


@dataclass(frozen=True)
class ActivationPoint:
    """An activation that is quantized.

    Attributes:
        quantizer: name of its quantizer; points with the same name share one (unified scales).
        source: name of the node whose value is quantized.
        readers: names of the nodes that read the quantized value; None: all that read ``source``.
        signed: whether the value can be negative (for a shared quantizer: any of its values).
        skewed: whether its negative values are much smaller than the positive ones (for a shared quantizer: of all
            its values).
        multiplied: whether it is a factor of a product of two activations.
        is_input: whether the value is an input of the network.
        rectifies: the value is that of a ReLU with this upper bound (infinity: none), and its quantizer takes its
            place, for it clamps anyway; None if it does not.
    """

    quantizer: str
    source: str
    readers: frozenset[str] | None
    signed: bool
    skewed: bool
    multiplied: bool
    is_input: bool
    rectifies: float | None = None


@dataclass(frozen=True)
class Placement:
    """What is quantized, and which quantizers feed each operator.

    Attributes:
        weights: layers and embeddings whose weight is quantized.
        activations: where activations are.
        inputs_of: layer -> quantizers of its input, of a product's first factor; several behind a concatenation.
        second_input_of: product -> quantizer of its second factor.
    """

    weights: frozenset[str]
    activations: tuple[ActivationPoint, ...]
    inputs_of: dict[str, tuple[str, ...]]
    second_input_of: dict[str, str]


NOTHING = Placement(frozenset(), (), {}, {})
"""The placement without any quantizer."""


def place_quantizers(
    model: GraphModule,
    operators: tuple[MacOperator, ...],
    embeddings: tuple[MacOperator, ...] = (),
    *,
    is_quantizable: Callable[[MacOperator], bool] = lambda operator: True,
    target_device: str = "ANY",
) -> Placement:
    """Choose quantization points for a captured graph.

    NNCF's own points are taken as far as an operator that can use them sees them; around attention its scheme for
    transformers. What it leaves in floating point (squeeze-and-excitation, conv1d, softmax in front of a product) gets
    a quantizer on its input edge: at strong budgets the BOPs of such layers would dominate. Of embeddings the table is
    quantized. Masks, integers and constants never are. A weight that an ignored layer reads as well stays as it is.

    Args:
        model: a captured graph, attention decomposed.
        operators: its operators that count.
        embeddings: its embeddings.
        is_quantizable: says of each of both whether it may be.
        target_device: one of NNCF's target devices.

    Raises:
        PlacementError: NNCF cannot handle the graph.
    """
    chosen = [operator for operator in operators if is_quantizable(operator)]
    ignored = [operator for operator in (*operators, *embeddings) if not is_quantizable(operator)]
    points = find_quantization_points(
        to_functional(model),
        ignored_nodes=[operator.node for operator in ignored],
        target_device=target_device,
        transformer=any(operator.weight is None for operator in operators),
    )
    edges = _Edges(model, points, operators)
    inputs_of: dict[str, list[int]] = {}
    second_input_of: dict[str, int] = {}
    multiplied: set[int] = set()
    for operator in chosen:
        first, second = edges.behind_inputs(operator)
        if operator.weight is None:
            multiplied.update(first, second)
        inputs_of[operator.layer] = first
        if second:
            second_input_of[operator.layer] = second[0]

    names, activations = edges.resolve(multiplied)
    kept = {operator.weight for operator in ignored}
    return Placement(
        weights=frozenset(
            operator.layer
            for operator in (*operators, *embeddings)
            if operator.weight is not None and operator.weight not in kept
        ),
        activations=activations,
        inputs_of={layer: tuple(dict.fromkeys(names[g] for g in groups)) for layer, groups in inputs_of.items()},
        second_input_of={layer: names[group] for layer, group in second_input_of.items()},
    )


@dataclass(frozen=True)
class _Edge:
    """A value that is quantized for some of its readers (None: all), with the scale of a group."""

    source: Node
    readers: frozenset[str] | None
    group: int
    serves: frozenset[str]


class _Edges:
    """Where quantizers are, and which of them are needed."""

    def __init__(
        self, model: GraphModule, points: Iterable[QuantizationPoint], operators: Iterable[MacOperator]
    ) -> None:
        self._model = model
        self._nodes = {node.name: node for node in model.graph.nodes}
        flow = analyse_dataflow(model)
        self._activations, self._factors = flow.activations, flow.activations | flow.learned
        self._layers = {operator.node for operator in operators if operator.weight is not None}
        found = [self._edge(point) for point in points]
        groups = {edge.group for edge in found if self._is_quantizable(edge)}
        floating = (edge for edge in found if edge.group in groups and is_floating(edge.source))
        self._at: dict[Node, list[_Edge]] = defaultdict(list)
        for edge in _share_readers_of_one_value(floating):
            self._at[edge.source].append(edge)
        self._added: set[_Edge] = set()
        # what NNCF wants quantized for other operators (sums, normalization) stays
        counted = {operator.node for operator in operators}
        self._used = {edge for edges in self._at.values() for edge in edges if edge.serves - counted}
        self._next_group = max((edge.group for edge in found), default=0) + 1

    def _edge(self, point: QuantizationPoint) -> _Edge:
        node, serves = self._nodes[point.node], frozenset(point.serves)
        # behind an operator that selects its part of a tensor: queries and keys each have their own range
        moves = len(moved_values(self._model, node)) == 1 and isinstance(node.meta["val"], torch.Tensor)
        if point.input_port is None or moves:
            return _Edge(node, None, point.scale_group, serves)
        arguments: list[Node] = []
        map_arg(node.args, arguments.append)
        tensors = [source for source in arguments if isinstance(source.meta["val"], torch.Tensor)]
        return _Edge(tensors[point.input_port], frozenset({node.name}), point.scale_group, serves)

    def _is_quantizable(self, edge: _Edge) -> bool:
        """A layer's input is; another value unless it is a mask, a constant, or a divisor, which may round to 0."""
        if edge.serves & self._layers:
            return is_floating(edge.source)
        divides = any(user.target is aten.div.Tensor and user.args[1] is edge.source for user in edge.source.users)
        return edge.source in self._activations and not divides

    def behind_inputs(self, operator: MacOperator) -> tuple[list[int], list[int]]:
        """Groups of the quantizers behind an operator's factors; one is added where there is none."""
        node = self._nodes[operator.node]
        result = [self._behind_or_new(node, factor, several=not i) for i, factor in enumerate(factors(node))]
        return result[0] if result else [], result[1] if len(result) > 1 else []

    def _behind_or_new(self, node: Node, source: Node, *, several: bool) -> list[int]:
        edges = self._behind(source, node.name)
        groups = list(dict.fromkeys(edge.group for edge in edges))
        if not groups or (len(groups) > 1 and not several):
            if not is_floating(source) or (node.name not in self._layers and source not in self._factors):
                return []
            edges = [self._add(source, node.name)]
            groups = [edges[0].group]
        self._used.update(edges)
        return groups

    def _behind(self, source: Node, reader: str) -> list[_Edge]:
        """The quantizers whose grids hold the value that ``reader`` sees; none if some of it comes from elsewhere."""
        found: dict[_Edge, None] = {}
        seen: set[tuple[Node, str]] = set()
        stack = [(source, reader)]
        while stack:
            value, name = stack.pop()
            if (value, name) in seen:
                continue
            seen.add((value, name))
            edge = next((e for e in self._at[value] if e.readers is None or name in e.readers), None)
            if edge is not None:
                found[edge] = None
                continue
            origins = moved_values(self._model, value)
            if not origins:
                return []
            stack += [(origin, value.name) for origin in reversed(origins)]
        return list(found)

    def _add(self, source: Node, reader: str) -> _Edge:
        """One quantizer serves all readers for which this value is not quantized yet."""
        earlier = next((edge for edge in self._at[source] if edge in self._added), None)
        if earlier is None:
            edge = _Edge(source, frozenset({reader}), self._next_group, frozenset())
            self._next_group += 1
        else:
            assert earlier.readers is not None
            edge = replace(earlier, readers=earlier.readers | {reader})
            self._at[source].remove(earlier)
            self._used.discard(earlier)
        self._added.add(edge)
        self._at[source].append(edge)
        return edge

    def resolve(self, multiplied: AbstractSet[int]) -> tuple[dict[int, str], tuple[ActivationPoint, ...]]:
        """Names of the groups, and the points that are needed.

        ``multiplied``: groups that quantize factors of products of two activations.
        """
        edges = [edge for at in self._at.values() for edge in at if edge in self._used]
        nonnegative = find_nonnegative(self._model)
        skewed = find_skewed(self._model)
        signed = {edge.group for edge in edges if edge.source.name not in nonnegative}
        straight = {edge.group for edge in edges if edge.source.name not in skewed}
        names: dict[int, str] = {}
        for edge in edges:
            names.setdefault(edge.group, edge.source.name)
        names = _unique(names)
        bounds: dict[int, set[float | None]] = defaultdict(set)
        for edge in edges:
            alone = edge.readers is None or edge.readers >= {user.name for user in edge.source.users}
            bounds[edge.group].add(rectifier_bound(edge.source) if alone else None)
        return names, tuple(
            ActivationPoint(
                quantizer=names[edge.group],
                source=edge.source.name,
                readers=edge.readers,
                signed=edge.group in signed,
                skewed=edge.group not in straight,
                multiplied=edge.group in multiplied,
                is_input=edge.source.op == "placeholder",
                rectifies=next(iter(bounds[edge.group])) if len(bounds[edge.group]) == 1 else None,
            )
            for edge in edges
        )


def _share_readers_of_one_value(edges: Iterable[_Edge]) -> list[_Edge]:
    """NNCF may quantize one value for each of its readers alone: once is enough, for all of them."""
    at: dict[Node, list[_Edge]] = defaultdict(list)
    for edge in edges:
        at[edge.source].append(edge)
    shared: dict[int, int] = {}

    def root(group: int) -> int:
        while group in shared:
            group = shared[group]
        return group

    for same in at.values():
        for edge in same[1:]:
            if root(edge.group) != root(same[0].group):
                shared[root(edge.group)] = root(same[0].group)
    return [
        _Edge(
            source,
            None if any(edge.readers is None for edge in same) else _union(edge.readers or () for edge in same),
            root(same[0].group),
            _union(edge.serves for edge in same),
        )
        for source, same in at.items()
    ]


def _union(sets: Iterable[Iterable[str]]) -> frozenset[str]:
    return frozenset(name for names in sets for name in names)


def _unique(names: dict[int, str]) -> dict[int, str]:
    """Two quantizers on one value (for different readers) are told apart by a number."""
    seen: dict[str, int] = {}
    result = {}
    for group, name in names.items():
        seen[name] = seen.get(name, 0) + 1
        result[group] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return result
