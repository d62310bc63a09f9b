# SPDX-License-Identifier: Apache-2.0
"""Writes every einsum as products of two operands, one letter for each dimension."""

import string
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import fx

from djpq_nncf.capture._shapes import propagate_shapes

aten = torch.ops.aten


def write_out_einsums(gm: fx.GraphModule) -> None:
    """Replace what einsum leaves to be inferred: the ellipsis, the output, the order of more than two operands.

    More than two are multiplied from left to right, as PyTorch does without an optimizer of its own. With one operand
    it is a transposition and a sum. An operand's diagonal (a letter twice in it) is left as it is.
    """
    found = [node for node in gm.graph.nodes if node.target is aten.einsum.default]
    for node in found:
        operands: Sequence[fx.Node] = node.args[1]
        terms, output = _spelled_out(str(node.args[0]), [operand.meta["val"].dim() for operand in operands])
        if len(operands) == 2:
            node.update_arg(0, f"{','.join(terms)}->{output}")
            continue
        with gm.graph.inserting_before(node):
            result = _product(gm.graph, operands, terms, output)
        result.meta = {**node.meta, **result.meta}
        node.replace_all_uses_with(result)
        gm.graph.erase_node(node)
    if found:
        gm.graph.lint()
        gm.recompile()
        propagate_shapes(gm)


def einsum_terms(node: fx.Node) -> tuple[list[str], str]:
    """Letters of the operands, and of the result, of an einsum in a captured graph: one for each dimension."""
    inputs, _, output = str(node.args[0]).partition("->")
    return inputs.split(","), output


def _spelled_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The same with the ellipsis and the output inferred, for operands of these ranks."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        letters = Counter("".join(terms).replace(".", ""))
        output = "..." * ("..." in inputs) + "".join(sorted(letter for letter, times in letters.items() if times == 1))
    spare = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    unused = (letter for letter in string.ascii_letters if letter not in equation)
    widest = "".join(next(unused) for _ in range(max(spare)))
    terms = [term.replace("...", widest[len(widest) - count :]) for term, count in zip(terms, spare, strict=True)]
    return terms, output.replace("...", widest)


def _product(graph: fx.Graph, operands: Sequence[fx.Node], terms: Sequence[str], output: str) -> fx.Node:
    if len(operands) == 1 and len(set(terms[0])) == len(terms[0]):
        return _rearranged(graph, operands[0], terms[0], output)
    result, term = operands[0], terms[0]
    for (operand, other), later in zip(zip(operands[1:], terms[1:], strict=True), _later(terms, output), strict=True):
        kept = "".join(letter for letter in dict.fromkeys(term + other) if letter in later)
        kept = output if later == output else kept
        result = graph.call_function(aten.einsum.default, (f"{term},{other}->{kept}", [result, operand]))
        term = kept
    if len(operands) == 1:
        return graph.call_function(aten.einsum.default, (f"{term}->{output}", [result]))
    return result


def _later(terms: Sequence[str], output: str) -> Iterator[str]:
    """For each product, the letters that are read after it."""
    for position in range(2, len(terms) + 1):
        yield "".join(terms[position:]) + output


def _rearranged(graph: fx.Graph, operand: fx.Node, term: str, output: str) -> fx.Node:
    summed = [dim for dim, letter in enumerate(term) if letter not in output]
    if summed:
        operand = graph.call_function(aten.sum.dim_IntList, (operand, summed))
    left = [letter for letter in term if letter in output]
    return graph.call_function(aten.permute.default, (operand, [left.index(letter) for letter in output]))
