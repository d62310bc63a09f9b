# SPDX-License-Identifier: Apache-2.0
"""What counts, under which name, and how much: layers written in any way, and products of activations."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from djpq_nncf.capture import capture
from djpq_nncf.cost import factors, find_embeddings, find_mac_operators, weight_source
from djpq_nncf.passes import decompose_attention
from tests.attention import CASES, LENGTH, WIDTH, WORDS, Block, Causal, WrittenOut, padding, tokens, words

PER_HEAD = LENGTH * LENGTH * WIDTH  # all heads together


@pytest.mark.parametrize("name", CASES)
def test_macs_are_those_of_torch(name: str) -> None:
    """torch's own counter looks at what is executed: two operations for each multiply-accumulate."""
    case = CASES[name]
    model = case.make().eval()
    one = tuple(x[:1] for x in case.inputs)
    # einsum may choose an order in which it computes more
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*one)
    captured = capture(model, case.inputs)
    for graph in (captured, decompose_attention(captured)):
        assert sum(operator.macs for operator in find_mac_operators(graph)) == counter.get_total_flops() // 2


def test_attention_is_two_products_in_either_form() -> None:
    captured = capture(Block().eval(), (tokens(), padding()))
    whole = [op for op in find_mac_operators(captured) if op.weight is None]
    parts = [op for op in find_mac_operators(decompose_attention(captured)) if op.weight is None]
    assert [(op.layer, op.kind, op.macs) for op in parts] == [
        ("attention.matmul", "matmul", PER_HEAD),
        ("attention.matmul#2", "matmul", PER_HEAD),
    ]
    assert [(op.layer, op.macs) for op in whole] == [
        ("attention.scaled_dot_product_attention", PER_HEAD),
        ("attention.scaled_dot_product_attention#2", PER_HEAD),
    ]
    assert all(op.weight_shape == () for op in (*whole, *parts))


def test_weights_from_in_to_out() -> None:
    graph = capture(Causal().eval(), (tokens(),))
    found = {op.kind: op for op in find_mac_operators(graph)}
    addmm, head = found["addmm"], found["linear"]
    assert (addmm.weight, addmm.weight_shape, addmm.output_dim, addmm.input_dim) == ("weight", (16, 48), 1, 0)
    assert addmm.macs == LENGTH * WIDTH * 3 * WIDTH
    assert (head.weight, head.output_dim, head.input_dim) == ("head.weight", 0, 1)


def test_parameters_in_einsum_and_transposed() -> None:
    graph = capture(WrittenOut().eval(), (words(),))
    nodes = {node.name: node for node in graph.graph.nodes}
    found = {op.weight: op for op in find_mac_operators(graph) if op.weight is not None}
    join, right, left = (found[name] for name in ("join", "right", "left"))
    assert join.macs == LENGTH * WIDTH * WIDTH
    assert (join.output_dim, join.input_dim) == (2, 0)
    # the transposed parameter is the weight, with its own dimensions
    assert (right.output_dim, right.input_dim, right.weight_shape) == (0, 1, (12, WIDTH))
    assert (left.output_dim, left.input_dim) == (0, 1)
    for operator in (join, right, left):
        source = weight_source(nodes[operator.node])
        assert source is not None and source.target == operator.weight
        assert len(factors(nodes[operator.node])) == 1
    products = [op for op in find_mac_operators(graph) if op.weight is None]
    assert [op.kind for op in products] == ["einsum", "einsum", "bmm", "baddbmm"]
    assert all(len(factors(nodes[op.node])) == 2 for op in products)


def test_embeddings() -> None:
    block = find_embeddings(capture(Block().eval(), (tokens(), padding())))
    assert [(table.layer, table.weight, table.weight_shape, table.macs) for table in block] == [
        ("words", "words.weight", (WORDS, WIDTH), 0),
        ("positions", "positions.weight", (LENGTH, WIDTH), 0),
    ]
    (tied,) = find_embeddings(capture(Causal().eval(), (tokens(),)))
    assert (tied.layer, tied.weight) == ("table", "head.weight")


class Computed(nn.Module):
    """Weight norm; a bias of positions that a small network makes of constants; a constant product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3))
        self.bias = nn.Linear(2, 6)
        self.register_buffer("places", torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        frequencies = torch.arange(4.0)[:, None] @ torch.ones(1, x.shape[2] - 2)
        return self.conv(x) + self.bias(self.places).relu() + frequencies


def test_computed_weights_count_and_constants_do_not() -> None:
    graph = capture(Computed().eval(), (torch.randn(2, 3, 8),))
    (conv,) = find_mac_operators(graph)
    assert (conv.layer, conv.weight, conv.weight_shape, conv.macs) == ("conv", "conv.weight", (4, 3, 3), 4 * 3 * 3 * 6)
    source = weight_source(next(node for node in graph.graph.nodes if node.name == conv.node))
    assert source is not None and source.op == "call_function"


def _repeated(x: Tensor, table: Tensor) -> Tensor:
    """As many copies of a parameter as there are samples are no weight."""
    return torch.bmm(x, table.expand(x.shape[0], -1, -1))


def _rotary(x: Tensor, table: Tensor) -> Tensor:
    """Angles for positions: no activations."""
    angles = torch.arange(x.shape[1]).float()[:, None] @ torch.ones(1, x.shape[2])
    return torch.bmm(x * angles.cos(), x.transpose(1, 2) * table[0, 0])


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.table = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.table)


@pytest.mark.parametrize("function", [_repeated, _rotary], ids=lambda function: function.__name__)
def test_products(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    (operator,) = find_mac_operators(capture(Function(function).eval(), (torch.randn(2, 3, 4),)))
    assert (operator.layer, operator.kind, operator.weight) == ("bmm", "bmm", None)


def test_names_are_unique_where_a_module_runs_twice() -> None:
    block = Block().attention
    twice = nn.Sequential(block, block)
    layers = [op.layer for op in find_mac_operators(decompose_attention(capture(twice.eval(), (words(),))))]
    assert len(set(layers)) == len(layers) == 12
    copied = nn.Sequential(block, copy.deepcopy(block))
    layers = [op.layer for op in find_mac_operators(decompose_attention(capture(copied.eval(), (words(),))))]
    assert {"0.matmul", "0.matmul#2", "1.matmul", "1.matmul#2"} < set(layers)
