# SPDX-License-Identifier: Apache-2.0
"""Products of activations and embeddings in what a network costs: exactly, differentiably, and as printed."""

from math import prod

import numpy as np
import pytest
import torch

from djpq_nncf.algorithms.djpq import CompressedNetwork
from djpq_nncf.algorithms.djpq._budget import Amounts
from djpq_nncf.algorithms.djpq._objective import Objective
from djpq_nncf.algorithms.djpq._targets import choices_of
from djpq_nncf.errors import ConfigError
from djpq_nncf.passes import kept_channels
from tests.attention import CASES, LENGTH, WIDTH, WORDS
from tests.helpers import PRUNING_ONLY, insert_into, random_gates, settings_of


def network_of(name: str = "block", **djpq: object) -> CompressedNetwork:
    case = CASES[name]
    network = insert_into(case.make(), *case.inputs, **djpq)
    for quantizer in (*network.weight_quantizers.values(), *network.activation_quantizers.values()):
        quantizer.initialize_(1.0, 6.0)
    return network


def test_bops_of_a_product_depend_on_both_factors() -> None:
    network = network_of(pruning={"enabled": False})
    bits = network.bit_widths()
    Objective(network.cost, network.gates, bits, settings_of().pruning).bops().sum().backward()
    product = next(op for op in network.operators if op.weight is None)
    (first,) = network.placement.inputs_of[product.layer]
    second = network.placement.second_input_of[product.layer]
    row = network.operators.index(product)
    weights, inputs, _ = bits.soft()
    for name, others in ((first, weights), (second, inputs)):
        quantizer = network.activation_quantizers[name]
        gradient = torch.autograd.grad(quantizer.continuous_bits(), quantizer.log_levels, retain_graph=True)[0]
        assert quantizer.log_levels.grad is not None
        torch.testing.assert_close(quantizer.log_levels.grad, product.macs * others[row].detach() * gradient)


def test_exact_bops_are_macs_times_the_bits_of_both_factors() -> None:
    network = network_of()
    bits = network.bit_widths()
    choices = choices_of(bits, power_of_two=False)
    widths = np.arange(len(bits.quantizers)) % 7 + 2
    for quantizer, width in zip(bits.quantizers.values(), widths.tolist(), strict=True):
        quantizer.fix_bits(width)
    macs = np.array([operator.macs for operator in network.operators], dtype=float)
    placement = network.placement
    expected = 0
    for operator in network.operators:
        second = (
            network.weight_quantizers[operator.weight]
            if operator.weight is not None
            else network.activation_quantizers[placement.second_input_of[operator.layer]]
        )
        (first,) = placement.inputs_of[operator.layer]
        expected += operator.macs * (second.bits or 0) * (network.activation_quantizers[first].bits or 0)
    assert choices.bops(Amounts(macs, np.array([])), widths).sum() == expected == network.statistics(bits, 0.1).bops


@pytest.mark.parametrize("quantized", [True, False], ids=["decomposed", "one operator"])
def test_statistics_count_what_is_left(quantized: bool) -> None:
    network = network_of(**({} if quantized else PRUNING_ONLY))
    random_gates(network.gates, 0, nearly_all=False)
    keep = kept_channels(network.analysis, network.gates)
    statistics = network.statistics(network.bit_widths(), 1e-12)
    macs = dict(zip((op.layer for op in network.operators), network.cost.exact_macs(keep), strict=True))
    products = [layer for layer in statistics.layers if "attention" in layer.kind or layer.kind == "matmul"]
    assert len(products) == 2
    value = next(layer for layer in statistics.layers if layer.name == "attention.value")
    query = next(layer for layer in statistics.layers if layer.name == "attention.query")
    for layer in products:
        assert layer.macs == macs[layer.name]
    if quantized:
        scores, mixed = products
        assert scores.out_channels == (LENGTH, LENGTH)
        assert scores.in_channels[1] == mixed.out_channels[1] == 4
        assert mixed.in_channels == (LENGTH, LENGTH)
        # heads times width within a head
        assert scores.macs == LENGTH * LENGTH * query.out_channels[0]
        assert mixed.macs == LENGTH * LENGTH * value.out_channels[0]
        assert query.out_channels[0] % scores.in_channels[0] == 0
        assert value.out_channels[0] % mixed.out_channels[0] == 0


def test_size_counts_tables_and_no_products() -> None:
    network = network_of(pruning={"enabled": False})
    sizes = {op.weight: prod(op.weight_shape) for op in (*network.operators, *network.embeddings) if op.weight}
    for number, quantizer in enumerate(network.weight_quantizers.values()):
        quantizer.fix_bits(2 + number % 7)
    expected = sum(sizes[name] * (q.bits or 0) for name, q in network.weight_quantizers.items())
    statistics = network.statistics(network.bit_widths(), 0.1)
    assert statistics.weight_size_ratio == pytest.approx(expected / 32 / sum(sizes.values()))
    words, positions = statistics.embeddings
    assert (words.name, words.rows, words.channels) == ("words", WORDS, (WIDTH, WIDTH))
    assert (positions.name, positions.rows) == ("positions", LENGTH)
    assert words.weight_bits == network.weight_quantizers["words.weight"].bits
    printed = statistics.to_str()
    assert "attention.matmul#2" in printed
    assert "embedding" in printed and "positions" in printed


def test_a_tied_table_counts_once() -> None:
    network = network_of("causal", **PRUNING_ONLY)
    for gate in network.gates.values():
        gate.open.fill_(True)
    statistics = network.statistics(network.bit_widths(), None)
    assert statistics.weight_size_ratio == 1
    (table,) = statistics.embeddings
    assert (table.name, table.weight_bits) == ("table", 32)


def test_tables_alone_are_nothing_to_compress() -> None:
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        insert_into(torch.nn.Embedding(4, 3), torch.zeros(2, 3, dtype=torch.long))
