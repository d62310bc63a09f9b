# SPDX-License-Identifier: Apache-2.0
"""Linear layers, lookups in tables, and products of any two tensors."""

from collections.abc import Sequence

import torch
from torch.fx import Node

from djpq_nncf.capture import einsum_terms
from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._nodes import is_tensor, shape_of, where
from djpq_nncf.channels._registry import register_channel_rule
from djpq_nncf.channels.rules._arguments import argument

aten = torch.ops.aten

_CANNOT_SHRINK = "multiplies it with a tensor that cannot shrink"


@register_channel_rule(aten.linear.default)
def linear(node: Node, context: RuleContext) -> None:
    """Input features are mixed; output features are new channels."""
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    if weight.op != "get_attr" or len(shape_of(weight)) != 2:
        context.freeze_inputs(node, where(node, "has a computed weight"))
        return
    *leading, incoming = context.labels(source)
    context.consume(node, weight, 1, incoming)
    outgoing = context.produce(node, weight, 0, bias)
    context.products[node.name] = ((*leading, context.parameter(weight, 1), outgoing),)
    context.set(node, [*leading, outgoing])


@register_channel_rule(aten.embedding.default)
def embedding(node: Node, context: RuleContext) -> None:
    """Rows are looked up and stay; columns are channels."""
    weight, indices = argument(node, "weight"), argument(node, "indices")
    outer = context.labels(indices)
    if weight.op != "get_attr":
        context.freeze_inputs(node, where(node, "looks up in a computed table"))
        return
    context.freeze(node, [context.parameter(weight, 0)], "looks up any of its rows")
    context.set(node, [*outer, context.produce(node, weight, 1)])


@register_channel_rule(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(node: Node, context: RuleContext) -> None:
    """The last dimension of the first operand meets the last but one of the second; the others run along."""
    first, second = node.args[:2]
    assert isinstance(first, Node) and isinstance(second, Node)
    context.set(node, _product(node, context, first, second))


@register_channel_rule(aten.addmm.default, aten.baddbmm.default)
def add_matmul(node: Node, context: RuleContext) -> None:
    """A product, and something added to it."""
    added, first, second = node.args[:3]
    assert isinstance(added, Node) and isinstance(first, Node) and isinstance(second, Node)
    product = _product(node, context, first, second, bias=added)
    labels = context.labels(added)
    result = list(product)
    for offset in range(1, len(labels) + 1):
        ids, size = labels[-offset], shape_of(added)[-offset]
        if size > 1:
            result[-offset] = context.tie(product[-offset], ids, where(node, "adds a tensor that cannot shrink"))
    context.set(node, result)


@register_channel_rule(aten.einsum.default)
def einsum(node: Node, context: RuleContext) -> None:
    """Dimensions with one letter meet; letters that the output lacks are summed over."""
    subscripts, output = einsum_terms(node)
    if any(len(set(letters)) < len(letters) for letters in subscripts):
        context.freeze_inputs(node, where(node, "takes a diagonal"))
        return
    operands: Sequence[Node] = node.args[1]  # type: ignore[assignment]
    (first, second), (left, right) = operands, subscripts
    labels: dict[str, Labels | None] = {}
    summed = None
    for letter in dict.fromkeys(left + right):
        if letter in left and letter in right and letter not in output:
            met = _contract(node, context, (first, left.index(letter)), (second, right.index(letter)))
            summed = summed if met is None else met
            continue
        sides = [(operand, own) for operand, own in ((first, left), (second, right)) if letter in own]
        known = [context.labels(operand)[own.index(letter)] for operand, own in sides]
        labels[letter] = context.tie(known[0], known[-1], where(node, _CANNOT_SHRINK))
        if len(sides) == 2:
            context.mark(labels[letter], "attention_heads")
        elif sides[0][0].op == "get_attr" and letter in output:
            context.produce(node, sides[0][0], sides[0][1].index(letter))
        if letter not in output and labels[letter] is not None:
            context.only_open(node, *((operand, own.index(letter)) for operand, own in sides))
    new = [letter for letter in right if letter not in left]
    if summed is None:
        for letter in new:
            context.mark(labels[letter], "value_width")
    context.products[node.name] = ((*context.labels(first), *(labels[letter] for letter in new)),)
    context.set(node, [labels[letter] for letter in output])


@register_channel_rule(aten.scaled_dot_product_attention.default)
def attention(node: Node, context: RuleContext) -> None:
    """Queries [..., heads, n, width] meet keys along the width; values keep theirs."""
    query, key, value, mask = (argument(node, name) for name in ("query", "key", "value", "attn_mask"))
    rank, labels = len(shape_of(query)), context.labels(query)
    result: list[Labels | None] = [*labels[:-1], context.labels(value)[-1]]
    for dim in range(rank - 2):
        for other in (key, value):
            ids, repeats = context.labels(other)[dim], shape_of(query)[dim] // shape_of(other)[dim]
            if ids is not None and repeats > 1:  # grouped queries
                ids = ids.repeat(repeats)
            result[dim] = context.tie(labels[dim], ids, where(node, _CANNOT_SHRINK))
        if is_tensor(mask) and len(shape_of(mask)) > rank - 1 - dim:
            own = dim - rank + len(shape_of(mask))
            if own >= 0 and shape_of(mask)[own] > 1:
                result[dim] = context.tie(result[dim], context.labels(mask)[own], where(node, _CANNOT_SHRINK))
        context.mark(result[dim], "attention_heads")
    masked = context.labels(mask)[-2:] if is_tensor(mask) else ()
    positions = [labels[-2], context.labels(key)[-2], context.labels(value)[-2], *masked]
    context.freeze(node, positions, "takes it for positions")
    context.mark(result[-1], "value_width")
    _contract(node, context, (query, rank - 1), (key, len(shape_of(key)) - 1))
    result[-2] = None
    context.products[node.name] = (context.labels(query), tuple(result))
    context.set(node, result)


def _product(
    node: Node, context: RuleContext, first: Node, second: Node, *, bias: Node | None = None
) -> list[Labels | None]:
    """Labels of ``first @ second``."""
    if len(shape_of(first)) == 1 or len(shape_of(second)) == 1:
        context.freeze_inputs(node, where(node, "multiplies a vector"))
        return [None] * len(shape_of(node))
    if second.op == "get_attr" and len(shape_of(second)) == 2:
        own_bias = bias if bias is not None and len(shape_of(bias)) == 1 else None
        context.produce(node, second, 1, own_bias)
    if first.op == "get_attr" and len(shape_of(first)) == 2:
        context.produce(node, first, 0)
    summed = _contract(node, context, (first, len(shape_of(first)) - 1), (second, len(shape_of(second)) - 2))
    left, right = context.labels(first), context.labels(second)
    result: list[Labels | None] = [None] * len(shape_of(node))
    result[-2], result[-1] = left[-2], right[-1]
    for offset in range(3, len(result) + 1):
        sides = [
            (labels[-offset], shape_of(operand)[-offset])
            for operand, labels in ((first, left), (second, right))
            if len(labels) >= offset and shape_of(operand)[-offset] == shape_of(node)[-offset]
        ]
        known = [ids for ids, _ in sides]
        result[-offset] = context.tie(known[0], known[-1], where(node, _CANNOT_SHRINK))
        context.mark(result[-offset], "attention_heads")
    if summed is None:
        context.mark(right[-1], "value_width")
    context.products[node.name] = ((*left, right[-1]),)
    return result


def _contract(node: Node, context: RuleContext, first: tuple[Node, int], second: tuple[Node, int]) -> Labels | None:
    """Two dimensions meet and are summed over."""
    left, right = (context.labels(operand)[dim] for operand, dim in (first, second))
    for (weight, dim), ids in ((first, right), (second, left)):
        if weight.op == "get_attr":
            context.consume(node, weight, dim, ids)
            return context.labels(weight)[dim]
    summed = context.tie(left, right, where(node, _CANNOT_SHRINK))
    if summed is not None:
        context.mark(summed, "query_key_width")
        context.contract(node, first, second)
    return summed
