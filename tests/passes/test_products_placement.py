# SPDX-License-Identifier: Apache-2.0
"""Quantizers on both factors of a product, on tables, on layers NNCF leaves out; never on masks and positions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from transformers import BertConfig, BertForSequenceClassification

from djpq_nncf.algorithms.djpq import CompressedNetwork, insert_gates_and_quantizers
from djpq_nncf.capture import capture, to_functional
from djpq_nncf.cost import factors
from djpq_nncf.errors import PlacementError
from djpq_nncf.nn import ActivationQuantizer, WeightQuantizer
from djpq_nncf.nncf_bridge import find_quantization_points, quiet_imports
from tests.attention import CASES, WIDTH
from tests.helpers import QUANTIZATION_ONLY, insert_into, settings_of
from tests.passes.test_placement import quantizer_of

aten = torch.ops.aten


def quantized(name: str, **djpq: Any) -> CompressedNetwork:
    case = CASES[name]
    return insert_into(case.make(), *case.inputs, **{**QUANTIZATION_ONLY, **djpq})


def bert() -> CompressedNetwork:
    """Two encoder layers of the real class."""
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(0, 30, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    captured = capture(BertForSequenceClassification(config).eval(), (), inputs)
    return insert_gates_and_quantizers(captured, settings_of(**QUANTIZATION_ONLY))


NETWORKS = {**{name: lambda name=name: quantized(name) for name in CASES}, "bert": bert}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> CompressedNetwork:
    made: CompressedNetwork = NETWORKS[request.param]()
    return made


def grids(network: CompressedNetwork, value: Node) -> set[ActivationQuantizer]:
    """The quantizers through which a value came; it must not have been computed with since."""
    found = quantizer_of(network.model, value)
    if found is not None:
        return {found}
    if value.op == "call_module":
        assert isinstance(network.model.get_submodule(str(value.target)), nn.Dropout)
        return grids(network, value.all_input_nodes[0])
    name = "getitem" if not isinstance(value.target, torch._ops.OpOverload) else value.target._schema.name
    assert name in {
        "aten::view", "aten::transpose", "aten::permute", "aten::reshape", "aten::select", "aten::expand",
        "aten::flatten", "aten::unflatten", "aten::chunk", "aten::slice", "getitem",
    }, f"{value} is not quantized"  # fmt: skip
    return grids(network, value.all_input_nodes[0])


def test_both_factors_of_products_and_the_input_of_layers(network: CompressedNetwork) -> None:
    nodes = {node.name: node for node in network.model.graph.nodes}
    placement = network.placement
    for operator in network.operators:
        first, *second = factors(nodes[operator.node])
        named = {network.activation_quantizers[name] for name in placement.inputs_of[operator.layer]}
        assert grids(network, first) == named, operator.layer
        assert bool(second) == (operator.weight is None) == (operator.layer in placement.second_input_of)
        if second:
            quantizer = network.activation_quantizers[placement.second_input_of[operator.layer]]
            assert grids(network, second[0]) == {quantizer}
        else:
            assert operator.weight in network.weight_quantizers


def test_bits_of_a_product_are_those_of_its_two_factors(network: CompressedNetwork) -> None:
    for number, quantizer in enumerate(network.activation_quantizers.values()):
        quantizer.fix_bits(2 + number % 7)
    for quantizer in network.weight_quantizers.values():
        quantizer.fix_bits(8)
    weights, inputs, _ = (values.tolist() for values in network.bit_widths().soft())
    assert len({network.activation_quantizers[name].bits for name in network.placement.second_input_of.values()}) > 1
    for operator, weight, activation in zip(network.operators, weights, inputs, strict=True):
        (first,) = network.placement.inputs_of[operator.layer]
        assert activation == network.activation_quantizers[first].bits
        second = network.placement.second_input_of.get(operator.layer)
        assert weight == (8 if second is None else network.activation_quantizers[second].bits)


def test_masks_indices_and_constants_are_left_alone(network: CompressedNetwork) -> None:
    for point in network.placement.activations:
        source = next((node for node in network.model.graph.nodes if node.name == point.source), None)
        if source is None:
            assert point.rectifies
            continue
        assert source.meta["val"].is_floating_point()
        assert source.op != "get_attr"
    for node in network.model.graph.nodes:
        if node.target in (aten.masked_fill.Scalar, aten.embedding.default):
            assert quantizer_of(network.model, node.args[1]) is None


def test_what_softmax_returns_is_unsigned(network: CompressedNetwork) -> None:
    """Also behind the second masking of the rows that see nothing."""
    found = 0
    for node in network.model.graph.nodes:
        quantizer = quantizer_of(network.model, node)
        if quantizer is None:
            continue
        source = node.args[0]
        if source.op == "call_module" and str(source.target).endswith("attention_dropout"):
            source = source.args[0]
        if source.target in (aten.softmax.int, aten.masked_fill.Scalar):
            found += 1
            assert quantizer.grid == "unsigned"
    assert found == sum(node.target is aten.softmax.int for node in network.model.graph.nodes)


def test_tables_are_quantized_and_what_is_tied_is_quantized_once() -> None:
    block, causal = quantized("block"), quantized("causal")
    assert {"words.weight", "positions.weight"} < set(block.weight_quantizers)
    assert {"words", "positions"} < block.placement.weights
    assert {"table", "head"} < causal.placement.weights
    tables = [node for node in causal.model.graph.nodes if node.target is aten.embedding.default]
    heads = [node for node in causal.model.graph.nodes if node.target is aten.linear.default]
    assert len(tables) == len(heads) == 1
    table, weight = tables[0].args[0], heads[0].args[1]
    assert table is weight
    assert isinstance(causal.model.get_submodule(str(table.target)), WeightQuantizer)
    assert sum(name.startswith("weight of") for name in causal.bit_widths().quantizers) == 2


@pytest.mark.parametrize("scope", [{"types": ["embedding"]}, ["head"]], ids=["table", "head"])
def test_a_weight_that_an_ignored_layer_reads_stays_as_it_is(scope: Any) -> None:
    causal = quantized("causal", quantization={"ignored_scopes": scope})
    assert set(causal.weight_quantizers) == {"weight"}
    assert "head" not in causal.placement.weights


def test_products_can_be_ignored() -> None:
    network = quantized("block", quantization={"ignored_scopes": {"types": ["matmul"]}})
    products = [op.layer for op in network.operators if op.weight is None]
    assert len(products) == 2
    assert not set(products) & {*network.placement.inputs_of, *network.placement.second_input_of}
    weights, inputs, _ = network.bit_widths().soft()
    rows = [network.operators.index(op) for op in network.operators if op.weight is None]
    assert weights[rows].tolist() == inputs[rows].tolist() == [32, 32]


class Divided(nn.Module):
    """Normalised by a mean over channels, as in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x / (x.abs().mean(-1, keepdim=True) + 1e-6))


def test_divisors_stay_in_floating_point() -> None:
    network = insert_into(Divided(), torch.randn(2, WIDTH), **QUANTIZATION_ONLY)
    (division,) = (node for node in network.model.graph.nodes if node.target is aten.div.Tensor)
    assert quantizer_of(network.model, division.args[1]) is None


def test_one_dimensional_convolutions() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.GELU(), nn.Conv1d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 2))
    network = insert_into(model, torch.randn(2, 3, 8), **QUANTIZATION_ONLY)
    assert network.placement.weights == {"0", "2", "4"}
    assert all(network.placement.inputs_of[layer] for layer in network.placement.weights)


class Unequal(nn.Module):
    """A key of two parts, each quantized on its own for another product."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = torch.cat([x, y], 1) @ x.transpose(1, 2)
        return self.head(scores.transpose(1, 2) @ torch.cat([x, y], 1))

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)


def test_a_second_factor_has_one_quantizer() -> None:
    network = insert_into(Unequal(), torch.randn(2, 3, WIDTH), torch.randn(2, 4, WIDTH), **QUANTIZATION_ONLY)
    nodes = {node.name: node for node in network.model.graph.nodes}
    for operator in network.operators[:2]:
        second = network.activation_quantizers[network.placement.second_input_of[operator.layer]]
        value = factors(nodes[operator.node])[1]
        while quantizer_of(network.model, value) is None:
            value = value.all_input_nodes[0]
        assert quantizer_of(network.model, value) is second


def test_the_operator_that_nncf_cannot_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet_imports():
        from nncf.experimental.torch.fx.nncf_graph_builder import GraphConverter
    original = GraphConverter.get_edge_params

    def fail(model: Any, source_node: Node, *others: Any) -> Any:
        if source_node.target is aten.gelu.default:
            raise KeyError("no such thing")
        return original(model, source_node, *others)

    monkeypatch.setattr(GraphConverter, "get_edge_params", staticmethod(fail))
    block = CASES["block"]
    captured = capture(block.make().eval(), block.inputs)
    with pytest.raises(PlacementError, match=r"at 'mlp\.1' \(aten\.gelu\.default\): KeyError"):
        find_quantization_points(to_functional(captured), ignored_nodes=[])
