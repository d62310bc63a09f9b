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
    OpenChannels,
    WeightQuantizer,
)
from djpq_nncf.passes import kept_channels
from tests.channels.cases import CASES
from tests.helpers import (
    NETWORKS,
    PRUNING_ONLY,
    VGG7,
    assert_same_outputs,
    images,
    insert_into,
    kept_by_hand,
    open_gates,
    other_batch,
    random_bits,
    random_gates,
    randomize,
    strip,
)

SEEDS = range(10)
FEW_SEEDS = range(4)

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    **{name: (factory, lambda: (images(2, 8),)) for name, factory in NETWORKS.items()},
    "vgg7": (lambda: VGG7(width=16), lambda: (images(2, 32),)),
    **{
        name: (lambda name=name: torchvision.models.get_model(name, num_classes=10), lambda: (images(2, 32),))  # type: ignore[misc]
        for name in ("resnet18", "resnet50", "mobilenet_v2", "densenet121")
    },
}
"""Name -> factory, example inputs."""

TORN = (
    "tearing: interleaved concatenation split elsewhere",
    "tearing: shuffle between grouped convolutions",
    "tearing: torn in stages",
    "attention: fused by stages",
    "attention: separate, heads as samples",
    "attention: keys expanded",
    "attention: rotated halves",
    "attention: torn and whole",
    "attention: encoder",
    "attention: shifted windows",
    "attention: unfolded patches",
    "blocks: selective kernels",
    "blocks: tables of words and positions",
)
"""Networks of tests/channels, which looks at what this file does not repeat: their groups, and other batches."""


@dataclass(frozen=True)
class Case:
    network: CompressedNetwork
    inputs: tuple[Tensor, ...]


def make_case(name: str, **djpq: Any) -> Case:
    """In double precision: what differs is wrong, not rounded."""
    factory, example = ARCHITECTURES.get(name) or (CASES[name].build, CASES[name].inputs)
    torch.manual_seed(0)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in example())
    return Case(insert_into(randomize(factory()).double(), *inputs, **djpq), inputs)


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


@torch.no_grad()
def counted_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """MACs for one sample as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2 // len(inputs[0])


def assert_nothing_left(model: GraphModule) -> None:
    """No gates, no masks, nothing that learns bits."""
    inserted = (Gate, GatedWeight, OpenChannels, WeightQuantizer, ActivationQuantizer)
    assert not [name for name, module in model.named_modules() if isinstance(module, inserted)]
    assert not hasattr(model, "compression")
    state = model.state_dict()
    assert not [name for name in state if name.startswith("compression") or "mask" in name or "gate" in name]
    assert not [name for name, value in state.items() if value.dtype == torch.bool]


def check_removal(case: Case, seed: int) -> None:
    """What is left computes the same, and has the size and the MACs that the analysis promises."""
    network, inputs = case.network, case.inputs
    random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
    stripped = strip(network)
    assert_same_outputs(network.model, stripped, *inputs)
    assert_nothing_left(stripped)

    keep = kept_channels(network.analysis, network.gates)
    macs = counted_macs(stripped, inputs)
    assert macs == sum(network.cost.exact_macs(keep)) < network.cost.baseline_macs
    no_bits = BitWidths(network.operators, {}, {}, {})
    assert network.statistics(no_bits, None).macs == macs

    sizes = {name: tuple(value.shape) for name, value in stripped.state_dict().items() if "_positions" not in name}
    assert sizes == kept_by_hand(network)
    for module in stripped.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == (module.num_features,)
    assert sum(value.numel() for value in stripped.parameters()) < sum(
        value.numel() for name, value in network.model.named_parameters() if not name.startswith("compression")
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_stripped_equals_gated(pruned: Case, seed: int) -> None:
    check_removal(pruned, seed)


@pytest.mark.parametrize("name", TORN)
def test_stripped_equals_gated_where_values_are_torn(name: str) -> None:
    case = make_case(name, **PRUNING_ONLY)
    for seed in FEW_SEEDS:
        check_removal(case, seed)


def test_every_closed_channel_counts(pruned: Case) -> None:
    """Closing channels changes the output: the comparison above would not pass by leaving them open."""
    network, inputs = pruned.network, pruned.inputs
    with torch.no_grad():
        random_gates(network.gates, 0, nearly_all=True)
        closed = network.model.eval()(*inputs)
        open_gates(network.gates)
        opened = network.model(*inputs)
    assert (closed - opened).abs().max() > 1e-3 * opened.abs().max()


def test_batch_size_is_free(pruned: Case) -> None:
    network = pruned.network
    random_gates(network.gates, 3, nearly_all=False)
    stripped = strip(network)
    for batch in (1, 3, 5):
        assert_same_outputs(network.model, stripped, *other_batch(pruned.inputs, batch))


def test_strip_leaves_the_gated_model_alone(pruned: Case) -> None:
    network = pruned.network
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    code = network.model.code
    strip(network)
    assert network.model.code == code
    after = network.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def check_removal_of_quantized(case: Case, seed: int) -> None:
    """As ``check_removal``, and quantizers are frozen at their bits, weights on their grid."""
    network, inputs = case.network, case.inputs
    random_bits(network, seed, *inputs)
    random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
    stripped = strip(network)
    assert_same_outputs(network.model, stripped, *inputs, tolerance=1e-4)  # a value may lie on the edge of a step
    assert_nothing_left(stripped)
    weights = {
        str(node.args[0].target): module
        for node in stripped.graph.nodes
        if node.op == "call_module" and isinstance(module := stripped.get_submodule(node.target), FrozenWeightQuantizer)
    }
    assert weights.keys() == network.weight_quantizers.keys() >= {op.weight for op in network.operators if op.weight}
    for name, module in weights.items():
        weight = stripped.get_parameter(name).detach()
        assert torch.equal(module(weight), weight), "weights lie on their grid already"
        assert len(weight.unique()) <= 2**module.bits - 1
        assert module.bits == network.weight_quantizers[name].bits
    activations = [m for m in stripped.modules() if isinstance(m, FrozenActivationQuantizer)]
    assert len(activations) == len(network.activation_quantizers)


@pytest.mark.parametrize("seed", SEEDS)
def test_stripped_equals_frozen_with_quantizers(quantized: Case, seed: int) -> None:
    if len(quantized.network.operators) > 40 and seed > 2:
        pytest.skip("deep networks take long and have nothing that the shallow ones lack")
    check_removal_of_quantized(quantized, seed)


@pytest.mark.parametrize("name", TORN)
def test_stripped_equals_frozen_where_values_are_torn(name: str) -> None:
    case = make_case(name)
    for seed in FEW_SEEDS:
        check_removal_of_quantized(case, seed)


def test_all_open_gates_fold_away() -> None:
    """Without a closed channel the stripped network is the original with scaled weights."""
    case = make_case("identity_residual", **PRUNING_ONLY)
    stripped = strip(case.network)
    original = case.network.model.state_dict()
    state = stripped.state_dict()
    assert state.keys() == {name for name in original if not name.startswith("compression")}
    assert all(torch.equal(state[name], original[name]) for name in state)
    assert_same_outputs(case.network.model, stripped, *case.inputs)
    assert {node.op for node in stripped.graph.nodes} == {
        "placeholder",
        "get_attr",
        "call_function",
        "call_module",
        "output",
    }
    assert not [node for node in stripped.graph.nodes if "gate" in node.name]
