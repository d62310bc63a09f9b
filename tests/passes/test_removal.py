# SPDX-License-Identifier: Apache-2.0
"""A network with closed channels computes the same once they are removed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from djpq_nncf.algorithms.djpq import CompressedNetwork
from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.nn import (
    ActivationQuantizer,
    FrozenActivationQuantizer,
    FrozenWeightQuantizer,
    Gate,
    GatedWeight,
    WeightQuantizer,
)
from djpq_nncf.passes import kept_channels, remove
from tests.helpers import NETWORKS, PRUNING_ONLY, VGG7, images, insert_into, random_bits, random_gates, randomize

SEEDS = range(10)

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (factory, 8) for name, factory in NETWORKS.items()},
    "vgg7": (lambda: VGG7(width=16), 32),
    **{
        name: (lambda name=name: torchvision.models.get_model(name, num_classes=10), 32)  # type: ignore[misc]
        for name in ("resnet18", "resnet50", "mobilenet_v2", "densenet121")
    },
}
"""Name -> factory, size of its images."""


@dataclass(frozen=True)
class Case:
    network: CompressedNetwork
    example: Tensor


def make_case(name: str, **djpq: Any) -> Case:
    """In double precision: what differs is wrong, not rounded."""
    factory, size = ARCHITECTURES[name]
    torch.manual_seed(0)
    example = images(2, size, dtype=torch.float64)
    return Case(insert_into(randomize(factory()).double(), example, **djpq), example)


@pytest.fixture(autouse=True)
def shapes_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing the shapes of the stripped graph takes most of the time and is tried with the first seed."""
    if "seed" in request.fixturenames and request.getfixturevalue("seed") > 0:
        monkeypatch.setattr("djpq_nncf.passes._remove.propagate_shapes", lambda model: None)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pruned(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield make_case(request.param, **PRUNING_ONLY)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def quantized(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield make_case(request.param)


def strip(network: CompressedNetwork) -> GraphModule:
    return remove(network.model, network.analysis, kept_channels(network.analysis, network.gates))


@torch.no_grad()
def assert_equal_outputs(gated: nn.Module, stripped: nn.Module, x: Tensor) -> None:
    expected, actual = gated.eval()(x), stripped.eval()(x)
    assert actual.shape == expected.shape
    assert expected.std() > 0
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def counted_macs(model: nn.Module, x: Tensor) -> int:
    """MACs for one sample as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2 // len(x)


def assert_nothing_left(model: GraphModule) -> None:
    """No gates, no masks, nothing that learns bits."""
    inserted = (Gate, GatedWeight, WeightQuantizer, ActivationQuantizer)
    assert not [name for name, module in model.named_modules() if isinstance(module, inserted)]
    assert not hasattr(model, "compression")
    state = model.state_dict()
    assert not [name for name in state if name.startswith("compression") or "mask" in name or "gate" in name]
    assert not [name for name, value in state.items() if value.dtype == torch.bool]


@pytest.mark.parametrize("seed", SEEDS)
def test_stripped_equals_gated(pruned: Case, seed: int) -> None:
    network, x = pruned.network, pruned.example
    random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
    stripped = strip(network)
    assert_equal_outputs(network.model, stripped, x)
    assert_nothing_left(stripped)

    keep = kept_channels(network.analysis, network.gates)
    macs = counted_macs(stripped, x)
    assert macs == sum(network.cost.exact_macs(keep)) < network.cost.baseline_macs
    no_bits = BitWidths(network.operators, {}, {}, {})
    assert network.statistics(no_bits, None).macs == macs

    original = network.model.state_dict()
    for name, labels in network.analysis.parameter_labels.items():
        for dim, ids in enumerate(labels):
            kept = original[name].shape[dim] if ids is None else int(((ids < 0) | keep[ids]).sum())
            assert stripped.state_dict()[name].shape[dim] == kept
    for module in stripped.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == (module.num_features,)
    assert sum(value.numel() for value in stripped.parameters()) < sum(
        value.numel() for name, value in network.model.named_parameters() if not name.startswith("compression")
    )


def test_every_closed_channel_counts(pruned: Case) -> None:
    """Closing channels changes the output: the comparison above would not pass by leaving them open."""
    network, x = pruned.network, pruned.example
    with torch.no_grad():
        random_gates(network.gates, 0, nearly_all=True)
        closed = network.model.eval()(x)
        for gate in network.gates.values():
            gate.open.fill_(True)
        opened = network.model(x)
    assert (closed - opened).abs().max() > 1e-3 * opened.abs().max()


def test_batch_size_is_free(pruned: Case) -> None:
    network = pruned.network
    random_gates(network.gates, 3, nearly_all=False)
    stripped = strip(network)
    for batch in (1, 3, 5):
        x = images(batch, pruned.example.shape[-1], seed=batch, dtype=torch.float64)
        assert_equal_outputs(network.model, stripped, x)


def test_strip_leaves_the_gated_model_alone(pruned: Case) -> None:
    network = pruned.network
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    code = network.model.code
    strip(network)
    assert network.model.code == code
    after = network.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("seed", SEEDS)
def test_stripped_equals_frozen_with_quantizers(quantized: Case, seed: int) -> None:
    network, x = quantized.network, quantized.example
    if len(network.operators) > 40 and seed > 2:
        pytest.skip("deep networks take long and have nothing that the shallow ones lack")
    random_bits(network, seed, x)
    random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
    stripped = strip(network)
    assert_equal_outputs(network.model, stripped, x)
    assert_nothing_left(stripped)
    weights = {
        str(node.args[0].target): module
        for node in stripped.graph.nodes
        if node.op == "call_module" and isinstance(module := stripped.get_submodule(node.target), FrozenWeightQuantizer)
    }
    assert weights.keys() == {operator.weight for operator in network.operators}
    for name, module in weights.items():
        weight = stripped.get_parameter(name).detach()
        assert torch.equal(module(weight), weight), "weights lie on their grid already"
        assert len(weight.unique()) <= 2**module.bits - 1
        assert module.bits == network.weight_quantizers[name].bits
    activations = [m for m in stripped.modules() if isinstance(m, FrozenActivationQuantizer)]
    assert len(activations) == len(network.activation_quantizers)


def test_all_open_gates_fold_away() -> None:
    """Without a closed channel the stripped network is the original with scaled weights."""
    case = make_case("identity_residual", **PRUNING_ONLY)
    stripped = strip(case.network)
    original = case.network.model.state_dict()
    state = stripped.state_dict()
    assert state.keys() == {name for name in original if not name.startswith("compression")}
    assert all(torch.equal(state[name], original[name]) for name in state)
    assert_equal_outputs(case.network.model, stripped, case.example)
    assert {node.op for node in stripped.graph.nodes} == {
        "placeholder",
        "get_attr",
        "call_function",
        "call_module",
        "output",
    }
    assert not [node for node in stripped.graph.nodes if "gate" in node.name]
