# SPDX-License-Identifier: Apache-2.0
"""Writes every matrix product, and every einsum, as one operator that has a name."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from djpq_nncf.capture import einsum_terms
from djpq_nncf.cost import MacOperator

_aten = torch.ops.aten


def mark_products(
    model: fx.GraphModule, operators: Iterable[MacOperator], multiply: Callable[..., Any], names: list[str]
) -> None:
    """Replaces products, in place.

    Args:
        model: the graph.
        operators: what counts in it.
        multiply: operator to write, called with both factors and an index into ``names``.
        names: of layers; those of the products are appended.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    for operator in operators:
        writer = _WRITERS.get(operator.kind)
        if writer is None:
            continue
        names.append(operator.layer)
        layer, node = len(names) - 1, nodes[operator.node]
        with model.graph.inserting_before(node):
            result = writer(node, lambda *factors: model.graph.call_function(multiply, (*factors, layer)))  # noqa: B023
        node.replace_all_uses_with(result)
        model.graph.erase_node(node)


def _matmul(node: fx.Node, multiply: Callable[..., fx.Node]) -> fx.Node:
    return multiply(*node.args[:2])


def _baddbmm(node: fx.Node, multiply: Callable[..., fx.Node]) -> fx.Node:
    """``beta * input + alpha * (first @ second)``."""
    graph = node.graph
    result = multiply(*node.args[1:3])
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    if alpha != 1:
        result = graph.call_function(_aten.mul.Tensor, (result, alpha))
    if beta == 0:
        return result
    added = node.args[0] if beta == 1 else graph.call_function(_aten.mul.Tensor, (node.args[0], beta))
    return graph.call_function(_aten.add.Tensor, (result, added))


def _einsum(node: fx.Node, multiply: Callable[..., fx.Node]) -> fx.Node:
    """Permute to [batch, left, summed] and [batch, summed, right], multiply, permute to what is asked for."""
    graph = node.graph
    (first, second), output = einsum_terms(node)
    one, other = node.args[1]  # type: ignore[misc, str-unpack]
    sizes = {
        letter: int(size)
        for operand, term in ((other, second), (one, first))
        for letter, size in zip(term, operand.meta["val"].shape, strict=True)  # type: ignore[union-attr]
    }
    batch = [letter for letter in first if letter in second and letter in output]
    summed = [letter for letter in first if letter in second and letter not in output]
    left, right = ([x for x in term if x not in batch + summed] for term in (first, second))
    # of a second factor without batch, the first may have any number of dimensions in front
    flat_left = bool(batch) and len(left) != 1

    def arranged(value: Any, term: str, groups: Sequence[tuple[list[str], bool]]) -> fx.Node:
        order = [term.index(letter) for letters, _ in groups for letter in letters]
        value = graph.call_function(_aten.permute.default, (value, order))
        position = 0
        for letters, flat in groups:
            if flat and not letters:
                value = graph.call_function(_aten.unsqueeze.default, (value, position))
            elif flat and len(letters) > 1:
                value = graph.call_function(_aten.flatten.using_ints, (value, position, position + len(letters) - 1))
            position += 1 if flat else len(letters)
        return value

    result = multiply(
        arranged(one, first, ((batch, False), (left, flat_left), (summed, True))),
        arranged(other, second, ((batch, False), (summed, True), (right, True))),
    )
    start = len(batch) + (1 if flat_left else len(left))
    for letters, position, flat in ((right, start, True), (left, len(batch), flat_left)):
        if flat and not letters:
            result = graph.call_function(_aten.squeeze.dim, (result, position))
        elif flat and len(letters) > 1:
            shape = [-1, *(sizes[letter] for letter in letters[1:])]
            result = graph.call_function(_aten.unflatten.int, (result, position, shape))
    order = [[*batch, *left, *right].index(letter) for letter in output]
    return graph.call_function(_aten.permute.default, (result, order))


_WRITERS: dict[str, Callable[..., fx.Node]] = {
    "baddbmm": _baddbmm,
    "bmm": _matmul,
    "einsum": _einsum,
    "matmul": _matmul,
    "mm": _matmul,
}
