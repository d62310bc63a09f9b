# SPDX-License-Identifier: Apache-2.0
"""Gating the weight equals gating the activation."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from djpq_nncf.nn import GatedWeight, GateScale


def gated_by(index: Sequence[int] | torch.Tensor, dim: int = 1) -> Callable[..., torch.Tensor]:
    """The weight with the gates of a place on one of its dimensions."""

    def gated(weight: torch.Tensor, *gates: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = GatedWeight()(weight, GateScale(index, weight.dim() - dim - 1)(*gates))
        return result

    return gated


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_conv_of_one_gate() -> None:
    x, weight, z = _randn(2, 6, 5, 5), _randn(4, 6, 3, 3), _randn(6)
    gated = gated_by(range(6))
    torch.testing.assert_close(
        functional.conv2d(x, gated(weight, z)), functional.conv2d(x * z.reshape(-1, 1, 1), weight)
    )


def test_several_gates_and_channels_without_gate() -> None:
    x, weight, first, second = _randn(2, 7), _randn(3, 7), _randn(2), _randn(3)
    index = [4, 4, 0, 5, 1, 2, 5]
    z = torch.stack([second[2], second[2], first[0], torch.ones(()), first[1], second[0], torch.ones(())])
    torch.testing.assert_close(
        functional.linear(x, gated_by(index)(weight, first, second)), functional.linear(x * z, weight)
    )


def test_consecutive_index_that_ends_without_gate() -> None:
    weight, z = _randn(3, 4), _randn(3)
    expected = weight * torch.cat([z, torch.ones(1, dtype=z.dtype)])
    torch.testing.assert_close(gated_by(range(4))(weight, z), expected)


def test_flatten_repeats_a_gate() -> None:
    x, weight, z = _randn(2, 3, 2, 2), _randn(5, 12), _randn(3)
    gated = gated_by(torch.arange(3).repeat_interleave(4))
    torch.testing.assert_close(
        functional.linear(x.flatten(1), gated(weight, z)),
        functional.linear((x * z.reshape(-1, 1, 1)).flatten(1), weight),
    )


def test_transposed_conv_has_its_inputs_first() -> None:
    x, weight, z = _randn(2, 4, 5, 5), _randn(4, 6, 3, 3), _randn(4)
    torch.testing.assert_close(
        functional.conv_transpose2d(x, gated_by(range(4), dim=0)(weight, z)),
        functional.conv_transpose2d(x * z.reshape(-1, 1, 1), weight),
    )


def test_entries_of_several_gates_are_multiplied() -> None:
    """A column that belongs to a head and to a width; the last one to a head only."""
    x, weight, heads, widths = _randn(2, 7), _randn(3, 7), _randn(2), _randn(3)
    index = [[head, 2 + width] for head in range(2) for width in range(3)] + [[1, 5]]
    z = torch.cat([(heads[:, None] * widths).flatten(), heads[1:]])
    gated = gated_by(torch.tensor(index))
    torch.testing.assert_close(functional.linear(x, gated(weight, heads, widths)), functional.linear(x * z, weight))


def test_bias_has_one_dimension() -> None:
    bias, heads, widths = _randn(6), _randn(2), _randn(3)
    index = [[head, 2 + width] for head in range(2) for width in range(3)]
    torch.testing.assert_close(
        gated_by(torch.tensor(index), dim=0)(bias, heads, widths), bias * (heads[:, None] * widths).flatten()
    )


def test_first_column_alone_is_no_plain_gate() -> None:
    """Counting up in the first column does not make it the identity."""
    weight, first, second = _randn(2, 3), _randn(3), _randn(1)
    gated = gated_by(torch.tensor([[0, 3], [1, 4], [2, 3]]))
    scale = first * torch.stack([second[0], torch.ones((), dtype=first.dtype), second[0]])
    torch.testing.assert_close(gated(weight, first, second), weight * scale)


def test_one_gate_with_two_columns() -> None:
    weight, z = _randn(2, 2), _randn(4)
    torch.testing.assert_close(gated_by(torch.tensor([[0, 2], [1, 3]]))(weight, z), weight * (z[:2] * z[2:]))


def test_gradients_reach_weight_and_gates() -> None:
    weight, first, second = (_randn(*s).requires_grad_() for s in ((3, 4), (2,), (1,)))
    assert torch.autograd.gradcheck(gated_by([0, 0, 2, 3]), (weight, first, second))
    assert torch.autograd.gradcheck(gated_by(torch.tensor([[0, 2], [1, 2], [0, 3], [1, 3]])), (weight, first, second))


def test_no_state() -> None:
    scale = GateScale([1, 0])
    assert not scale.state_dict()
    scale.load_state_dict({}, strict=True)


def test_compiles_to_one_graph() -> None:
    scale, product = GateScale(torch.tensor([[0, 1], [1, 2], [1, 1], [2, 0]])), GatedWeight()

    def gated(weight: torch.Tensor, *gates: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = product(weight, scale(*gates))
        return result

    compiled = torch.compile(gated, backend="aot_eager", fullgraph=True)
    weight, z = _randn(3, 4), _randn(2)
    torch.testing.assert_close(compiled(weight, z), gated(weight, z))
