# SPDX-License-Identifier: Apache-2.0
"""Networks made to mislead the analysis: exactly the groups written by hand, and removal equals gating."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from djpq_nncf.algorithms.djpq import CompressedNetwork
from tests.channels.cases import CASES, Case, found_groups
from tests.helpers import (
    PRUNING_ONLY,
    assert_same_outputs,
    insert_into,
    kept_by_hand,
    open_gates,
    other_batch,
    random_gates,
    randomize,
    strip,
)

pytestmark = pytest.mark.filterwarnings("ignore:Net was captured in eval mode")


@dataclass(frozen=True)
class Built:
    """Both networks, in double precision."""

    case: Case
    original: nn.Module
    inputs: tuple[Tensor, ...]
    network: CompressedNetwork


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    torch.manual_seed(0)
    case = CASES[request.param]
    original, inputs = randomize(case.build()).double().eval(), case.inputs()
    yield Built(case, original, inputs, insert_into(original, *inputs, **PRUNING_ONLY))


def test_groups(built: Built) -> None:
    found = found_groups(built.network.analysis)
    assert found == dict(built.case.groups)
    assert list(found) == list(built.case.groups), "in the order of the graph"


def test_open_gates_change_nothing(built: Built) -> None:
    open_gates(built.network.gates)
    for inputs in (built.inputs, other_batch(built.inputs, 3)):
        assert_same_outputs(built.original, built.network.model, *inputs)


@pytest.mark.parametrize("seed", range(4))
def test_removed_equals_gated(built: Built, seed: int) -> None:
    """The odd seeds close nearly everything."""
    network = built.network
    random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
    stripped = strip(network)
    for inputs in (built.inputs, other_batch(built.inputs, 3), other_batch(built.inputs, 1)):
        assert_same_outputs(network.model, stripped, *inputs)
    sizes = {name: tuple(value.shape) for name, value in stripped.state_dict().items() if "_positions" not in name}
    assert sizes == kept_by_hand(network)


@torch.no_grad()
def test_every_channel_counts(built: Built) -> None:
    """Closing any single channel changes the output: comparisons would not pass by leaving it open."""
    network = built.network
    open_gates(network.gates)
    opened = tree_leaves(network.model.eval()(*built.inputs))
    for name, gate in network.gates.items():
        for channel in range(gate.size if gate.size > 1 else 0):
            open_gates({name: gate})
            gate.close([channel])
            closed = tree_leaves(network.model(*built.inputs))
            change = max((one - other).abs().max() / one.abs().max() for one, other in zip(opened, closed, strict=True))
            assert change > 1e-6, f"channel {channel} of {name}"
        open_gates({name: gate})
