# SPDX-License-Identifier: Apache-2.0
"""Random graphs: removal equals gating, and what must stay stays.

``DJPQ_RANDOM_GRAPHS=2000 pytest tests/channels/test_random_graphs.py`` looks at more of them, larger and at random.
"""

import os

import torch
from hypothesis import HealthCheck, event, given, settings
from torch import nn

from tests.channels.random_graphs import INPUT_CHANNELS, RandomNetwork, networks
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

FEW = 30
EXAMPLES = int(os.environ.get("DJPQ_RANDOM_GRAPHS", FEW))


@settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == FEW,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(networks(most_pieces=6 if EXAMPLES == FEW else 10))
def test_removed_equals_gated(original: RandomNetwork) -> None:
    """Conditioning and rounding allow for more here than in the networks written by hand."""
    original = randomize(original).double().eval()  # type: ignore[assignment]
    example = (torch.randn(2, INPUT_CHANNELS, 4, 4, dtype=torch.float64),)
    inputs = (example, other_batch(example, 3))
    network = insert_into(original, *example, **PRUNING_ONLY)
    analysis = network.analysis
    event("groups: none" if not analysis.groups else "groups: some")
    open_gates(network.gates)
    for x in inputs:
        assert_same_outputs(original, network.model, *x, tolerance=1e-7, may_be_constant=True)
    assert {int(i) for point in analysis.gate_points for i in point.labels.flatten()} - {-1} == set(
        range(analysis.channel_count)
    )
    for seed in range(4):
        random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
        stripped = strip(network)
        for x in inputs:
            assert_same_outputs(network.model, stripped, *x, tolerance=1e-7, may_be_constant=True)
        sizes = {name: tuple(value.shape) for name, value in stripped.state_dict().items() if "_positions" not in name}
        assert sizes == kept_by_hand(network)
        assert all(size > 0 for shape in sizes.values() for size in shape)
        for name, group in analysis.groups.items():
            left = int(network.gates[name].open.sum())
            assert left > 0
            if left < group.size:
                assert all(
                    sizes[member.parameter] != original.state_dict()[member.parameter].shape for member in group.members
                )
        for module in stripped.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.num_features == len(module.weight)
