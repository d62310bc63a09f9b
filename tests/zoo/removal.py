# SPDX-License-Identifier: Apache-2.0
"""The check of one architecture: captured = original, removed = gated; and what could be removed of it."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule

from djpq_nncf.algorithms.djpq import CompressedNetwork, insert_gates_and_quantizers
from djpq_nncf.capture import capture
from djpq_nncf.channels import ChannelAnalysis, analyse_channels
from djpq_nncf.passes import fold_computed_weights, kept_channels, remove
from tests.helpers import PRUNING_ONLY, random_gates, settings_of
from tests.zoo.comparison import node_errors, relative_error, run, variation
from tests.zoo.registry import Example, ZooModel
from tests.zoo.shares import Shares, macs_by_torch, shares_of

SEEDS = {"full": range(4), "small": range(2)}
"""The odd ones close nearly everything; then outputs depend on little, and the zeroth closes a quarter only."""
CAPTURE_TOLERANCE = 1e-5
REMOVAL_TOLERANCE = 1e-4
CLOSING_CHANGES = 1e-3
"""Closing channels must change the output by this much, or the comparison would prove nothing."""
VARIES = 1e-3
"""By so much of its magnitude the output must differ between two samples, in one of the seeds."""
ROUNDING = 1e-9
"""Differences in double precision below this are no errors."""
MACS_OF_CONSTANTS = 0.02
"""Share that torch may count beyond ours: layers on constants, which need not be computed for every sample."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class FrozenReason:
    """Why output channels stay: a reason, how many channels it holds, and of which layers."""

    reason: str
    channels: int
    layers: list[str]


@dataclass
class RemovalRow:
    """What the check of an architecture measured; times are CPU seconds of one thread."""

    kind: ClassVar[str] = "removal"
    name: str
    family: str
    inputs: str = ""
    nodes: int = 0
    groups: int = 0
    channels: int = 0
    shares: Shares | None = None
    frozen: list[FrozenReason] = field(default_factory=list)
    capture_seconds: float = 0.0
    analysis_seconds: float = 0.0
    capture_error: float = 0.0
    precision: str = "float32"
    removal_error: float = 0.0
    variation: float = 0.0
    kept_parameters: list[float] = field(default_factory=list)
    failure: str = ""


def check_removal(model: ZooModel, size: str, row: RemovalRow) -> None:
    """Fill ``row``.

    Raises:
        AssertionError: the captured or the smaller network computes something else, or nothing can be removed.
    """
    example = model.build(size)
    row.inputs = example.describe_inputs()
    captured, row.capture_seconds = timed(lambda: capture(example.module, *example.inputs()))
    row.nodes = len(captured.graph.nodes)
    for batch in (2, 1):
        original = run(example.module, example, batch=batch)
        row.capture_error = max(row.capture_error, relative_error(run(captured, example, batch=batch), original))
    assert row.capture_error <= CAPTURE_TOLERANCE, f"captured and original differ by {row.capture_error:.1e}"

    folded = fold_computed_weights(captured)
    row.analysis_seconds = min(timed(lambda: analyse_channels(folded))[1] for _ in range(3 if size == "full" else 1))
    network = insert_gates_and_quantizers(captured, settings_of(**PRUNING_ONLY))
    row.groups, row.channels = len(network.analysis.groups), network.analysis.channel_count
    row.frozen = frozen_reasons(network.analysis)
    assert network.analysis.groups, "no channel of the network can be removed"
    row.shares = shares_of(network)
    counted, expected = row.shares.macs + row.shares.product_macs, macs_by_torch(captured, example)
    assert (1 - MACS_OF_CONSTANTS) * expected <= counted <= expected, (
        f"our cost model counts {counted} MACs, torch {expected}"
    )

    _compare(network, example, row, size)
    if not row.removal_error <= REMOVAL_TOLERANCE:
        # Rounding or a wrong graph? In double precision only the latter remains.
        del captured, folded, network
        row.precision = "float64"
        example = model.build(size).double()
        captured = capture(example.module, *example.inputs())
        network = insert_gates_and_quantizers(captured, settings_of(**PRUNING_ONLY))
        _compare(network, example, row, size, explain=True)
    assert max(row.kept_parameters) < 1, "removal leaves as many parameters as there were"
    assert row.variation >= VARIES, "the output does not depend on the input"


def _compare(
    network: CompressedNetwork, example: Example, row: RemovalRow, size: str, *, explain: bool = False
) -> None:
    """Largest relative error of removed against gated over all seeds; one of them is run with another batch too.

    Args:
        network: with gates.
        example: inputs.
        row: to fill.
        size: in the small form every value inside the networks is compared, too.
        explain: raise with the first node that differs where the error is above the tolerance.
    """
    opened = run(_open(network), example)
    row.removal_error, row.kept_parameters, row.variation = 0.0, [], 0.0
    assert row.shares is not None
    for seed in SEEDS[size]:
        removed = strip(network, seed)
        row.kept_parameters.append(_parameters(removed) / row.shares.parameters)
        gated = run(network.model, example)
        row.variation = max(row.variation, variation(gated))
        assert relative_error(gated, opened) > CLOSING_CHANGES, "closing channels changes nothing"
        errors = [relative_error(run(removed, example), gated)]
        if seed == 0:
            errors.append(relative_error(run(removed, example, batch=1), run(network.model, example, batch=1)))
        keep = kept_channels(network.analysis, network.gates)
        values = (network.model, removed, network.analysis, keep, example)
        if size == "small":
            errors.append(max(error for _, error in node_errors(*values)))
        row.removal_error = max(row.removal_error, *errors)
        if explain and not row.removal_error <= REMOVAL_TOLERANCE:
            where = next((where for where, error in node_errors(*values) if error > ROUNDING), "no node")
            raise AssertionError(f"removed and gated differ by {row.removal_error:.1e} (seed {seed}); first at {where}")


def strip(network: CompressedNetwork, seed: int) -> GraphModule:
    """Draw gates anew and remove what they close: a quarter of every group, nearly all, or any share of each."""
    random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
    if seed == 0:
        close_a_quarter(network)
    return remove(network.model, network.analysis, kept_channels(network.analysis, network.gates))


def close_a_quarter(network: CompressedNetwork) -> None:
    """Enough to change every size; the output still depends on the input."""
    generator = torch.Generator().manual_seed(0)
    for gate in network.gates.values():
        gate.open.fill_(True)
        gate.close(torch.randperm(gate.size, generator=generator)[: gate.size // 4])


def frozen_reasons(analysis: ChannelAnalysis) -> list[FrozenReason]:
    """Reasons with what they hold, the most channels first."""
    channels: Counter[str] = Counter()
    layers: dict[str, list[str]] = defaultdict(list)
    for frozen in analysis.frozen:
        channels[frozen.reason] += frozen.count
        layers[frozen.reason].append(frozen.layer)
    return [FrozenReason(reason, count, layers[reason]) for reason, count in channels.most_common()]


def _open(network: CompressedNetwork) -> nn.Module:
    for gate in network.gates.values():
        gate.open.fill_(True)
    return network.model


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """A result, and the CPU seconds it took: other processes do not count."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start
