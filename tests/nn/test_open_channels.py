# SPDX-License-Identifier: Apache-2.0
"""Operators that relate channels to each other see the open ones only."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.nn import Gate, OpenChannels, Slot

aten = torch.ops.aten


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _closed(size: int, *closed: int) -> Gate:
    gate = Gate(size)
    gate.close(closed)
    return gate


def _line(*positions: int) -> Tensor:
    return torch.tensor(positions).reshape(-1, 1)


def _open(
    operator: Callable[..., Tensor],
    arguments: Sequence[Any],
    gates: Sequence[Gate],
    inputs: Mapping[int, Mapping[int, Tensor]],
    output: Mapping[int, Tensor] | None = None,
    **keywords: Any,
) -> OpenChannels:
    return OpenChannels(operator, arguments, keywords, gates, inputs, output or {})


def test_is_the_call_itself_while_all_are_open() -> None:
    """Whatever the positions say: they are not looked at."""
    x = _randn(2, 4)
    module = _open(aten.softmax.int, (Slot(0), 1), [Gate(3)], {0: {1: _line(0)}}, {1: _line(0)})
    assert torch.equal(module(x), x.softmax(1))


def test_softmax_over_what_is_open() -> None:
    """And one where nobody reads it, so that a logarithm or a quotient of it stays finite."""
    x = _randn(2, 4, 3)
    every = _line(0, 1, 2, 3)
    module = _open(aten.softmax.int, (Slot(0), 1), [_closed(4, 0, 2)], {0: {1: every}}, {1: every})
    y = module(x)
    torch.testing.assert_close(y[:, [1, 3]], x[:, [1, 3]].softmax(1))
    assert torch.equal(y[:, [0, 2]], torch.ones(2, 2, 3, dtype=x.dtype))


def test_reduction_has_no_channels_left() -> None:
    x = _randn(2, 4, 3)
    module = _open(aten.mean.dim, (Slot(0), [1]), [_closed(4, 3)], {0: {1: _line(0, 1, 2, 3)}}, keepdim=True)
    torch.testing.assert_close(module(x), x[:, :3].mean(1, keepdim=True))


def test_several_gates_and_entries_without_one() -> None:
    """Positions count through the gates; the one after the last stands for none."""
    x = _randn(2, 6)
    gates = [_closed(2, 1), _closed(3, 0)]
    module = _open(aten.sum.dim_IntList, (Slot(0), [1]), gates, {0: {1: _line(2, 5, 1, 0, 4, 5)}})
    torch.testing.assert_close(module(x), x[:, [1, 3, 4, 5]].sum(1))


def test_entry_is_open_if_all_its_channels_are() -> None:
    """2 heads, the first closed, of 3, the last closed."""
    x = _randn(2, 6)
    index = torch.tensor([[head, 2 + width] for head in range(2) for width in range(3)])
    module = _open(aten.amax.default, (Slot(0), [1]), [_closed(2, 0), _closed(3, 2)], {0: {1: index}})
    torch.testing.assert_close(module(x), x[:, 3:5].amax(1))


def test_layer_norm_takes_shape_and_scales_of_the_open_ones() -> None:
    x, weight, bias = _randn(2, 5, 4), _randn(4), _randn(4) + 1
    every = _line(0, 1, 2, 3)
    module = _open(
        aten.layer_norm.default, (Slot(0), [4], Slot(1), Slot(2), 0.1), [_closed(4, 1)],
        {0: {2: every}, 1: {0: every}, 2: {0: every}}, {2: every},
    )  # fmt: skip
    kept = [0, 2, 3]
    expected = nn.functional.layer_norm(x[..., kept], [3], weight[kept], bias[kept], 0.1)
    torch.testing.assert_close(module(x, weight, bias)[..., kept], expected)


def test_product_sums_over_what_is_open() -> None:
    query, key = _randn(2, 5, 4), _randn(2, 4, 5)
    every = _line(0, 1, 2, 3)
    module = _open(aten.matmul.default, (Slot(0), Slot(1)), [_closed(4, 2)], {0: {2: every}, 1: {1: every}})
    kept = [0, 1, 3]
    torch.testing.assert_close(module(query, key), query[..., kept] @ key[:, kept])


def test_lists_of_inputs_and_keywords() -> None:
    x, y = _randn(2, 3), _randn(2, 3)
    every = _line(0, 1, 2)
    module = _open(aten.cat.default, ([Slot(0), Slot(1)],), [_closed(3, 1)], {0: {1: every}, 1: {1: every}}, dim=1)
    torch.testing.assert_close(module(x, y), torch.cat([x[:, [0, 2]], y[:, [0, 2]]], 1))


def test_another_size_is_an_error() -> None:
    """Channels merged with samples: with another batch nobody knows which are closed."""
    module = _open(aten.softmax.int, (Slot(0), 0), [_closed(2, 1)], {0: {0: _line(0, 1, 0, 1)}})
    assert module(_randn(4, 3)).shape == (2, 3)
    with pytest.raises(RuntimeError, match=r"relates 6 entries .* example inputs had 4.*exclude the layer"):
        module(_randn(6, 3))


def test_gradients_reach_open_entries_only() -> None:
    x = _randn(2, 4).requires_grad_()
    every = _line(0, 1, 2, 3)
    module = _open(aten.softmax.int, (Slot(0), 1), [_closed(4, 0)], {0: {1: every}}, {1: every})
    assert torch.autograd.gradcheck(module, (x,))
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x)
    assert torch.equal(gradient[:, 0], torch.zeros(2, dtype=x.dtype))
    assert (gradient[:, 1:] != 0).all()


class Gated(nn.Module):
    """Owns the gate that a call looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(4)
        every = _line(0, 1, 2, 3)
        self.call = _open(aten.softmax.int, (Slot(0), 1), [self.gate], {0: {1: every}}, {1: every})

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def test_gates_stay_with_their_owner() -> None:
    model = Gated()
    assert not model.call.state_dict()
    assert not list(model.call.parameters())
    assert [name for name, _ in model.named_modules()] == ["", "gate", "call"]


def test_copy_looks_at_its_own_gates() -> None:
    model, x = Gated(), _randn(2, 4)
    other = copy.deepcopy(model)
    other.gate.close([0])
    assert torch.equal(model(x), x.softmax(1))
    torch.testing.assert_close(other(x)[:, 1:], x[:, 1:].softmax(1))


def test_follows_a_loaded_state() -> None:
    model, other, x = Gated(), Gated(), _randn(2, 4)
    other.gate.close([3])
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))
    assert not torch.equal(model(x), x.softmax(1))


def test_compiles_to_one_graph_while_all_are_open() -> None:
    model, x = Gated(), _randn(2, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_compiled_model_follows_a_closed_channel() -> None:
    model, x = Gated(), _randn(2, 4)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    model.gate.close([1])
    torch.testing.assert_close(compiled(x), model(x))
