# SPDX-License-Identifier: Apache-2.0
"""Einsum in a captured graph: products of two operands, one letter for each dimension."""

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.capture import capture, einsum_terms

aten = torch.ops.aten

SHAPES = {
    "bij,bjk->bik": ((4, 3), (3, 5)),
    "bij, bjk": ((4, 3), (3, 5)),
    "b...ij,bjk->b...ik": ((6, 4, 3), (3, 5)),
    "...ij,...kj": ((6, 4, 3), (6, 5, 3)),
    "b...i,bi->b...": ((6, 4, 3), (3,)),
    "bij->bji": ((4, 3),),
    "bij->b": ((4, 3),),
    "...i->i...": ((4, 3),),
    "bii->bi": ((4, 4),),
    "bij,bjk,bkl->bil": ((4, 3), (3, 5), (5, 2)),
    "bij,bij,bij->bj": ((4, 3), (4, 3), (4, 3)),
    "...i,...j,...k": ((3,), (4,), (5,)),
    "bi,bj,bk,bij->bk": ((3,), (4,), (5,), (3, 4)),
}


class Einsum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation, self.scale = equation, nn.Parameter(torch.rand(()))

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.einsum(self.equation, *operands) * self.scale


@pytest.mark.parametrize("equation", SHAPES)
def test_same_with_pairs(equation: str) -> None:
    shapes = SHAPES[equation]
    model = Einsum(equation).double()
    gm = capture(model, tuple(torch.rand(2, *shape, dtype=torch.float64) for shape in shapes))
    found = [node for node in gm.graph.nodes if node.target is aten.einsum.default]
    assert len(found) == (int("ii" in equation) if len(shapes) == 1 else len(shapes) - 1)
    for node in found:
        terms, output = einsum_terms(node)
        assert [len(term) for term in terms] == [operand.meta["val"].dim() for operand in node.args[1]]
        assert len(output) == node.meta["val"].dim()
        assert all(letter.isalpha() for letter in output)
    other = tuple(torch.rand(3, *shape, dtype=torch.float64) for shape in shapes)
    torch.testing.assert_close(gm(*other), model(*other))
