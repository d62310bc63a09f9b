# SPDX-License-Identifier: Apache-2.0
"""The operators whose multiply-accumulates are counted, and the embeddings, whose tables take room."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from djpq_nncf.capture import einsum_terms, layer_name
from djpq_nncf.capture._names import module_path
from djpq_nncf.cost._dataflow import analyse_dataflow

aten = torch.ops.aten

_FORWARD = {
    getattr(getattr(aten, f"conv{rank}d"), overload) for rank in (1, 2, 3) for overload in ("default", "padding")
}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_CONVOLUTIONS = _FORWARD | _TRANSPOSED
_LINEAR = {aten.linear.default}
_SUMMED = {aten.addmm.default, aten.baddbmm.default}
_PRODUCTS = {aten.matmul.default, aten.mm.default, aten.bmm.default, *_SUMMED}
_EINSUM = {aten.einsum.default}
_ATTENTION = {aten.scaled_dot_product_attention.default}
_OPERATORS = _CONVOLUTIONS | _LINEAR | _PRODUCTS | _EINSUM | _ATTENTION
_EMBEDDINGS = {aten.embedding.default}


@dataclass(frozen=True)
class MacOperator:
    """An operator of a captured graph that multiplies and accumulates.

    Attributes:
        layer: name users see, unique in the network.
        node: name of its node.
        kind: operator, as ATen calls it ("conv2d", "linear", "matmul").
        weight: state-dict name of its weight; of a weight that is computed (weight norm) the name it gets once it is a
            parameter. None for a product of two activations.
        weight_shape: shape of the weight, () for a product.
        macs: multiply-accumulates for one sample (padding counted, bias not).
        output_dim: dimension of the weight that runs over output channels.
        input_dim: dimension of the weight that runs over input channels (within a group).
    """

    layer: str
    node: str
    kind: str
    weight: str | None
    weight_shape: tuple[int, ...]
    macs: int
    output_dim: int = 0
    input_dim: int = 1


def find_mac_operators(model: GraphModule) -> tuple[MacOperator, ...]:
    """Layers with a weight of their own and products of two activations, in the order of the graph.

    ``scaled_dot_product_attention`` is two products: query with key, then that with the value. What follows from
    parameters and constants alone (position tables) does not count: it is computed once for all samples.
    """
    flow = analyse_dataflow(model)
    names = _Names(model)
    found: list[MacOperator] = []
    for node in model.graph.nodes:
        if node.target not in _OPERATORS or node not in flow.computed or _is_diagonal(node):
            continue
        source = weight_source(node)
        if source is not None:
            found.append(_layer(node, source, names, _batch(model)))
        elif node in flow.activations:
            for macs in _product_macs(node):
                name = names.unique(".".join(filter(None, (module_path(node), _kind(node)))))
                found.append(MacOperator(name, node.name, _kind(node), None, (), macs // _batch(model)))
    return tuple(found)


def find_embeddings(model: GraphModule) -> tuple[MacOperator, ...]:
    """Embeddings, one for each table, in the order of the graph: operators without MACs, whose weight can be small."""
    found: dict[str, MacOperator] = {}
    for node in model.graph.nodes:
        source = weight_source(node) if node.target in _EMBEDDINGS else None
        if source is not None and source.op == "get_attr" and str(source.target) not in found:
            name, shape = str(source.target), tuple(source.meta["val"].shape)
            found[name] = MacOperator(layer_name(node), node.name, _kind(node), name, shape, 0, 1, 0)
    return tuple(found.values())


def factors(node: Node) -> tuple[Node, ...]:
    """The activations that an operator multiplies: the input of a layer, both factors of a product.

    None of ``scaled_dot_product_attention``, which has more than two: decompose it first.
    """
    if node.target in _ATTENTION:
        return ()
    weight = _weight_argument(node)
    first, second = _operands(node)
    return (first, second) if weight is None else (first,) if weight is second else (second,)


def _operands(node: Node) -> tuple[Node, Node]:
    if node.target in _EINSUM:
        first, second = node.args[1]  # type: ignore[misc, str-unpack]
    elif node.target in _SUMMED:
        first, second = node.args[1:3]
    elif node.target in _EMBEDDINGS:
        second, first = node.args[:2]
    else:
        first, second = node.args[:2]
    assert isinstance(first, Node) and isinstance(second, Node)
    return first, second


def weight_source(node: Node) -> Node | None:
    """The node of an operator's weight: its parameter, or the last node that computes it from parameters.

    Looks through what was inserted between, and through transpositions of a parameter. None for an operator which
    multiplies two activations.
    """
    argument = _weight_argument(node)
    return None if argument is None else _through_permutations(argument, ())[0]


def _is_diagonal(node: Node) -> bool:
    """Einsum of one operand: nothing is multiplied."""
    return node.target in _EINSUM and len(node.args[1]) == 1  # type: ignore[arg-type]


def _weight_argument(node: Node) -> Node | None:
    if node.target in _ATTENTION:
        return None
    first, second = _operands(node)
    fixed = node.target in _CONVOLUTIONS | _LINEAR | _EMBEDDINGS
    return next((side for side in ((second,) if fixed else (second, first)) if _is_weight(side)), None)


def _is_weight(node: Node) -> bool:
    """Whether a value follows from parameters and constants alone: not from a size of an input either."""
    owner = node.graph.owning_module
    assert owner is not None
    seen, stack, parameters = {node}, [node], 0
    while stack:
        current = stack.pop()
        if current.op == "placeholder":
            return False
        if current.op == "get_attr":
            path, _, name = str(current.target).rpartition(".")
            parameters += isinstance(getattr(owner.get_submodule(path), name), nn.Parameter)
        stack.extend(source for source in current.all_input_nodes if source not in seen)
        seen.update(current.all_input_nodes)
    return parameters > 0


def _through_permutations(node: Node, dims: Sequence[int]) -> tuple[Node, tuple[int, ...]]:
    """The parameter that ``node`` is a transposition of, and ``dims`` of ``node`` as dimensions of it; or both."""
    while node.op == "call_module":
        (node, *_) = node.all_input_nodes
    source, moved = node, tuple(dims)
    while source.op == "call_module" or source.target in _PERMUTATIONS:
        if source.op != "call_module":
            order = _PERMUTATIONS[source.target](source, len(source.meta["val"].shape))
            moved = tuple(order[dim] for dim in moved)
        (source, *_) = source.all_input_nodes
    return (source, moved) if source.op == "get_attr" else (node, tuple(dims))


def _transposed(node: Node, rank: int) -> list[int]:
    order = list(range(rank))
    first, second = (int(dim) for dim in node.args[1:3])  # type: ignore[arg-type]
    order[first], order[second] = order[second], order[first]
    return order


_PERMUTATIONS: dict[Any, Any] = {
    aten.t.default: lambda node, rank: list(range(rank))[::-1],
    aten.transpose.int: _transposed,
    aten.permute.default: lambda node, rank: [dim % rank for dim in node.args[1]],
}


class _Names:
    """Names of layers and of computed weights, each given once."""

    def __init__(self, model: GraphModule) -> None:
        self._seen: Counter[str] = Counter()
        self._tensors = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        self._weights: dict[Node, str] = {}

    def unique(self, name: str) -> str:
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}#{self._seen[name]}"

    def weight(self, source: Node, layer: str) -> str:
        if source.op == "get_attr":
            return str(source.target)
        name = f"{layer}.weight"
        while source not in self._weights:
            if name not in self._tensors:
                self._weights[source] = name
                self._tensors.add(name)
            name += "_"
        return self._weights[source]


def _layer(node: Node, source: Node, names: _Names, batch: int) -> MacOperator:
    argument = _weight_argument(node)
    assert argument is not None
    _, (output_dim, input_dim) = _through_permutations(argument, _weight_dims(node, argument))
    layer = layer_name(node)
    return MacOperator(
        layer=names.unique(layer),
        node=node.name,
        kind=_kind(node),
        weight=names.weight(source, layer),
        weight_shape=tuple(source.meta["val"].shape),
        macs=next(_product_macs(node)) // batch,
        output_dim=output_dim,
        input_dim=input_dim,
    )


def _weight_dims(node: Node, weight: Node) -> tuple[int, int]:
    """Dimensions of an operator's weight argument over output and over input channels."""
    first, second = _operands(node)
    if node.target in _CONVOLUTIONS | _LINEAR:
        return (1, 0) if node.target in _TRANSPOSED else (0, 1)
    if node.target in _EINSUM:
        terms, output = einsum_terms(node)
        own, other = terms if weight is first else terms[::-1]
        kept = [dim for dim, letter in enumerate(own) if letter in output and letter not in other]
        summed = [dim for dim, letter in enumerate(own) if letter not in output]
        return (kept or [0])[0], (summed or [0])[0]
    rank = len(weight.meta["val"].shape)
    if rank == 1:
        return 0, 0
    return (rank - 1, rank - 2) if weight is second else (rank - 2, rank - 1)


def _product_macs(node: Node) -> Any:
    """Multiply-accumulates for the whole batch: output elements times what is summed over, for each product."""
    if node.target in _ATTENTION:
        query, key, value = (argument.meta["val"].shape for argument in node.args[:3])  # type: ignore[union-attr]
        scores = prod(query[:-1]) * key[-2]
        yield scores * query[-1]
        yield scores * value[-1]
        return
    first, second = (operand.meta["val"].shape for operand in _operands(node))
    output = prod(node.meta["val"].shape)
    if node.target in _TRANSPOSED:
        yield prod(first) * prod(second[1:])
    elif node.target in _FORWARD:
        yield output * prod(second[1:])
    elif node.target in _EINSUM:
        (one, other), kept = einsum_terms(node)
        sizes = dict(zip(other + one, (*second, *first), strict=True))
        yield output * prod(size for letter, size in sizes.items() if letter not in kept)
    else:
        yield output * first[-1]


def _kind(node: Node) -> str:
    return str(node.target).split(".")[1]


def _batch(model: GraphModule) -> int:
    return next((int(spec.shape[0]) for spec in model.meta.get("djpq_inputs", ()) if spec.batched), 1)
