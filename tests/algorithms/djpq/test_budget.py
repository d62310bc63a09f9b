# SPDX-License-Identifier: Apache-2.0
"""The decision at the freeze: integer bits and channels within a budget of BOPs."""

import functools
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from djpq_nncf.algorithms.djpq import CompressedNetwork, block_of
from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.algorithms.djpq._budget import BitChoices, Floats, Integers, choose_bits
from djpq_nncf.algorithms.djpq._freezing import Decision, choices_of, reachable_bops
from djpq_nncf.channels import Role
from djpq_nncf.cost import MacOperator
from djpq_nncf.nn import ActivationQuantizer
from tests.helpers import NETWORKS, PRUNING_ONLY, VGG7, images, insert_into, settings_of


def random_problem(seed: int, layers: int, allowed: tuple[int, ...] = tuple(range(2, 9))) -> tuple[BitChoices, Floats]:
    """Every weight has a quantizer of its own, inputs share some, the first input is fixed to 8 bits."""
    random = np.random.default_rng(seed)
    inputs = max(2, layers // 2)
    count = layers + inputs
    index = random.integers(layers, count, (layers, 2))
    index[0] = layers
    index[:, 1] = np.where(random.random(layers) < 0.7, index[:, 0], index[:, 1])
    admissible: list[tuple[int, ...]] = [allowed] * count
    admissible[layers] = (8,)
    learned = random.uniform(allowed[0], allowed[-1], count)
    learned[layers] = 8
    macs = random.uniform(0.5, 5, layers) * 1e6
    return BitChoices(learned, admissible, np.arange(layers), index), macs


def extreme_bops(choices: BitChoices, macs: Floats, position: int) -> float:
    return choices.bops(macs, np.array([allowed[position] for allowed in choices.admissible]))


@pytest.mark.parametrize("seed", range(30))
def test_never_above_the_budget_and_close_to_it(seed: int) -> None:
    choices, macs = random_problem(seed, layers=12)
    least, most = (extreme_bops(choices, macs, position) for position in (0, -1))
    budget = least * (most / least) ** np.random.default_rng(seed).uniform(0.02, 0.98)
    bits = choose_bits(choices, macs, budget, tolerance=0.02)
    assert 0.98 * budget <= choices.bops(macs, bits) <= budget
    assert all(b in allowed for b, allowed in zip(bits, choices.admissible, strict=True))


def test_unreachable_budget_gives_the_least() -> None:
    choices, macs = random_problem(0, layers=6)
    bits = choose_bits(choices, macs, 0.5 * extreme_bops(choices, macs, 0), tolerance=0.02)
    assert bits.tolist() == [allowed[0] for allowed in choices.admissible]


def test_generous_budget_gives_the_most() -> None:
    choices, macs = random_problem(0, layers=6)
    bits = choose_bits(choices, macs, 2 * extreme_bops(choices, macs, -1), tolerance=0.02)
    reached = choices.bops(macs, bits)
    assert reached == extreme_bops(choices, macs, -1)


def test_no_budget_rounds_to_the_nearest() -> None:
    choices, macs = random_problem(1, layers=6)
    bits = choose_bits(choices, macs, np.inf, tolerance=0.02)
    assert bits.tolist() == np.round(choices.learned).astype(int).tolist()


def test_powers_of_two_stay_among_themselves() -> None:
    choices, macs = random_problem(2, layers=16, allowed=(2, 4, 8))
    least, most = (extreme_bops(choices, macs, position) for position in (0, -1))
    for budget in np.geomspace(1.1 * least, 0.9 * most, 6):
        bits = choose_bits(choices, macs, budget, tolerance=0.02)
        assert set(bits.tolist()) <= {2, 4, 8}
        assert 0.95 * budget <= choices.bops(macs, bits) <= budget


def damage(choices: BitChoices, macs: Floats, bits: Integers) -> float:
    """As the docstring has it: the share of BOPs over b*, times 4^(b* - b)."""
    learned = np.append(choices.learned, 32)
    costs = macs * learned[choices.weight_index] * learned[choices.input_index].max(1)
    total = 0.0
    for quantizer, own in enumerate(choices.learned):
        serves = (choices.weight_index == quantizer) * 1 + (choices.input_index == quantizer).sum(1)
        total += (costs * serves).sum() / costs.sum() / own * 4.0 ** (own - bits[quantizer])
    return float(total)


@pytest.mark.parametrize("seed", range(20))
def test_against_every_combination(seed: int) -> None:
    """Small enough to try them all."""
    choices, macs = random_problem(seed, layers=3, allowed=(2, 3, 4, 5))
    every = [np.array(bits) for bits in itertools.product(*choices.admissible)]
    costs = np.array([choices.bops(macs, bits) for bits in every])
    budget = float(np.quantile(costs, 0.3)) * 1.001
    chosen = choose_bits(choices, macs, budget, tolerance=1.0)
    assert choices.bops(macs, chosen) <= budget
    least = min(damage(choices, macs, bits) for bits, cost in zip(every, costs, strict=True) if cost <= budget)
    assert damage(choices, macs, chosen) <= 2 * least
    nearest = costs[costs <= budget].max()
    filled = choices.bops(macs, choose_bits(choices, macs, budget, tolerance=0.0))
    assert 0.9 * nearest <= filled <= budget


def test_unquantized_layers_count_with_32_bits() -> None:
    choices = BitChoices(np.array([4.0]), [(2, 3, 4)], np.array([0, 1]), np.array([[1], [1]]))
    assert choices.bops(np.array([10.0, 1.0]), np.array([3])) == 10 * 3 * 32 + 32 * 32


def test_widest_input_counts() -> None:
    choices = BitChoices(np.array([4.0, 5.0, 6.0]), [(4,), (5,), (6,)], np.array([0]), np.array([[1, 2]]))
    assert choices.bops(np.array([10.0]), np.array([4, 5, 6])) == 10 * 4 * 6


def test_widest_input_counts_while_bits_are_learned() -> None:
    """At a concatenation; nothing in front of a layer means 32 bits."""
    operators = [
        MacOperator(name, name, "conv2d", f"{name}.weight", (4, 4, 1, 1), 100) for name in ("joined", "floating")
    ]
    narrow, wide = ActivationQuantizer("unsigned"), ActivationQuantizer("unsigned")
    narrow.initialize_(1.0, 3)
    wide.initialize_(1.0, 5)
    bits = BitWidths(operators, {}, {"narrow": narrow, "wide": wide}, {"joined": ("narrow", "wide")})
    weight_bits, input_bits = bits.soft()
    assert weight_bits.tolist() == [32, 32]
    assert input_bits.tolist() == pytest.approx([5, 32])


@functools.cache
def network_of(name: str, djpq: str) -> CompressedNetwork:
    """One for all seeds; the settings as JSON."""
    model, x = (VGG7(8), images(2, 32)) if name == "vgg7" else (NETWORKS[name](), images())
    return insert_into(model, x, **json.loads(djpq))


def random_network(name: str, seed: int, **djpq: Any) -> tuple[CompressedNetwork, BitWidths]:
    """Random alpha in every gate and random bits in every quantizer."""
    network = network_of(name, json.dumps(djpq))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in network.gates.values():
            gate.open.fill_(True)
            gate.log_variance.copy_(torch.randn(gate.size, generator=generator) * 6 + 4)
        for quantizer in (*network.weight_quantizers.values(), *network.activation_quantizers.values()):
            quantizer.initialize_(1.0, float(torch.rand((), generator=generator)) * 6 + 2)
    widths = BitWidths(
        network.operators, network.weight_quantizers, network.activation_quantizers, network.placement.inputs_of
    )
    return network, widths


def decide(network: CompressedNetwork, bits: BitWidths, **djpq: Any) -> tuple[np.ndarray, Integers, float]:
    """Which channels stay, which bits, and BOPs / baseline of that."""
    settings = settings_of(**djpq)
    keep, widths = Decision(network.cost, network.analysis, network.gates, bits, settings).make()
    choices = choices_of(bits, power_of_two=settings.quantization.power_of_two)
    used = choices.bops(np.array(network.cost.exact_macs(keep), dtype=float), widths)
    return keep, widths, used / network.cost.baseline_bops


def kept_by_group(network: CompressedNetwork, keep: np.ndarray) -> dict[str, int]:
    return {name: int(keep[list(group.channels)].sum()) for name, group in network.analysis.groups.items()}


@pytest.mark.parametrize("target", [0.05, 0.02, 0.01])
@pytest.mark.parametrize("name", ["plain", "bottleneck", "depthwise_separable", "pre_activation"])
def test_joint_decision_meets_the_target(name: str, target: float) -> None:
    djpq = {"target": {"bops_ratio": target}}
    for seed in range(4):
        network, bits = random_network(name, seed, **djpq)
        keep, _, ratio = decide(network, bits, **djpq)
        # 8 bits everywhere are a sixteenth: close to it there are few combinations in a network this small.
        assert (0.95 if target == 0.05 else 0.98) * target <= ratio <= target
        assert min(kept_by_group(network, keep).values()) >= 1


@pytest.mark.parametrize("target", [0.6, 0.3])
def test_pruning_alone_meets_the_target(target: float) -> None:
    djpq = {**PRUNING_ONLY, "target": {"bops_ratio": target}}
    for seed in range(4):
        network, bits = random_network("vgg7", seed, **djpq)
        _, widths, ratio = decide(network, bits, **djpq)
        assert not len(widths)
        assert 0.98 * target <= ratio <= target


def test_channels_of_least_alpha_go_first() -> None:
    djpq = {**PRUNING_ONLY, "target": {"bops_ratio": 0.3}}
    network, bits = random_network("concat", 0, **djpq)
    keep, _, _ = decide(network, bits, **djpq)
    log_alpha = torch.cat([gate.log_alpha().detach() for gate in network.gates.values()]).numpy()
    spared = {  # the strongest of each group stays in any case
        max(group.channels, key=lambda i: log_alpha[i]) for group in network.analysis.groups.values()
    }
    kept = [log_alpha[i] for i in np.flatnonzero(keep) if i not in spared]
    gone = log_alpha[~keep]
    assert len(gone) and (not kept or gone.max() <= min(kept))


def test_threshold_alone_without_a_target() -> None:
    djpq: dict[str, Any] = {"pruning": {"gamma": 1e-3, "threshold": 0.5}, "quantization": {"beta": 1e-9}}
    network, bits = random_network("bottleneck", 3, **djpq)
    keep, widths, _ = decide(network, bits, **djpq)
    for name, gate in network.gates.items():
        alpha = gate.log_alpha().detach().exp()
        expected = alpha >= 0.5
        if not expected.any():
            expected[alpha.argmax()] = True
        assert torch.from_numpy(keep[list(network.analysis.groups[name].channels)]).equal(expected)
    assert widths.tolist() == [round(float(q.continuous_bits().detach())) for q in bits.quantizers.values()]


@pytest.mark.parametrize("multiple", [2, 4])
def test_round_to(multiple: int) -> None:
    djpq: dict[str, Any] = {"pruning": {"round_to": multiple}, "target": {"bops_ratio": 0.02}}
    for seed in range(4):
        network, bits = random_network("plain", seed, **djpq)
        keep, _, ratio = decide(network, bits, **djpq)
        for name, count in kept_by_group(network, keep).items():
            assert count % multiple == 0 or count == network.analysis.groups[name].size
        assert ratio <= 0.02


@pytest.mark.parametrize(
    ("role", "size", "round_to", "block"),
    [
        ("hidden", 31, None, 1),
        ("hidden", 32, None, 8),
        ("residual", 100, None, 8),
        ("hidden", 8, 4, 4),
        ("hidden", 64, 1, 1),
        ("attention_heads", 64, None, 1),
        ("attention_heads", 64, 4, 1),
    ],
)
def test_block_of(role: Role, size: int, round_to: int | None, block: int) -> None:
    assert block_of(role, size, round_to) == block


@pytest.mark.parametrize("target", [0.1, 0.02])
def test_blocks_of_eight_by_default(target: float) -> None:
    djpq: dict[str, Any] = {"target": {"bops_ratio": target}}
    wide = 0
    for seed in range(6):
        network, bits = random_network("vgg7", seed, **djpq)
        keep, _, ratio = decide(network, bits, **djpq)
        for name, count in kept_by_group(network, keep).items():
            if network.analysis.groups[name].size >= 32:
                wide += count < network.analysis.groups[name].size
                assert count % 8 == 0
        assert 0.98 * target <= ratio <= target
    assert wide > 6


def test_round_to_keeps_more_not_fewer() -> None:
    djpq: dict[str, Any] = {"pruning": {"gamma": 1e-3, "round_to": 4}, "quantization": {"beta": 1e-9}}
    network, bits = random_network("bottleneck", 1, **djpq)
    counts = kept_by_group(network, decide(network, bits, **djpq)[0])
    for name, gate in network.gates.items():
        above = max(1, int((~gate.below(1e-3)).sum()))
        assert counts[name] == min(gate.size, -(-above // 4) * 4)


@pytest.mark.parametrize("target", [0.05, 0.005])
def test_closed_by_hand_stays_closed(target: float) -> None:
    djpq = {"target": {"bops_ratio": target}}
    for seed in range(4):
        network, bits = random_network("plain", seed, **djpq)
        for gate in network.gates.values():
            strongest = gate.log_alpha().argsort(descending=True)[: gate.size // 2]
            gate.close(strongest)
        keep, _, ratio = decide(network, bits, **djpq)
        for name, gate in network.gates.items():
            kept = torch.from_numpy(keep[list(network.analysis.groups[name].channels)])
            assert not (kept & ~gate.open).any()
            assert kept.any()
        assert ratio <= target


def test_power_of_two_decision() -> None:
    djpq: dict[str, Any] = {"quantization": {"power_of_two": True}, "target": {"bops_ratio": 0.02}}
    for seed in range(4):
        network, bits = random_network("bottleneck", seed, **djpq)
        _, widths, ratio = decide(network, bits, **djpq)
        assert set(widths.tolist()) <= {2, 4, 8}
        assert 0.98 * 0.02 <= ratio <= 0.02


def test_fixed_bits_stay() -> None:
    djpq: dict[str, Any] = {"quantization": {"weights": {"bits": 5}}, "target": {"bops_ratio": 0.02}}
    network, bits = random_network("plain", 0, **djpq)
    _, widths, ratio = decide(network, bits, **djpq)
    named = dict(zip(bits.quantizers, widths.tolist(), strict=True))
    assert {width for name, width in named.items() if name.startswith("weight")} == {5}
    assert ratio <= 0.02


def test_reachable_bops() -> None:
    network, bits = random_network("plain", 0)
    choices = choices_of(bits, power_of_two=False)
    least, greatest = reachable_bops(choices, network.cost, network.analysis)
    macs = [operator.macs for operator in network.operators]
    rows = [operator.weight_shape[0] for operator in network.operators]
    columns = [operator.weight_shape[1] for operator in network.operators]
    assert greatest == pytest.approx(64 / 1024)
    # The input stays at 8 bits, the output layer keeps its rows.
    expected = macs[0] / rows[0] * 2 * 8 + macs[-1] / columns[-1] * 2 * 2
    expected += sum(macs[i] / rows[i] / columns[i] * 2 * 2 for i in range(1, len(macs) - 1))
    assert least == pytest.approx(expected / (sum(macs) * 1024), rel=0.02)
