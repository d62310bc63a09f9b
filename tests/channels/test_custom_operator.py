# SPDX-License-Identifier: Apache-2.0
"""Rules that users register for operators of their own."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from djpq_nncf.capture import capture
from djpq_nncf.channels import (
    Removal,
    RuleContext,
    _registry,
    analyse_channels,
    register_channel_rule,
    register_rewrite,
)
from djpq_nncf.passes import kept_channels, remove
from tests.helpers import PRUNING_ONLY, images, insert_into, random_gates


@torch.library.custom_op("djpq_tests::scale", mutates_args=())
def scale(x: Tensor, channels: int) -> Tensor:
    """Insists on being told how many channels there are."""
    if x.shape[1] != channels:
        raise ValueError(f"{x.shape[1]} channels instead of {channels}")
    return 2 * x


@scale.register_fake
def _(x: Tensor, channels: int) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(scale(self.first(x), 8))


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_registry, "_RULES", dict(_registry._RULES))
    monkeypatch.setattr(_registry, "_REWRITES", dict(_registry._REWRITES))
    yield


def test_unknown_operator_freezes() -> None:
    analysis = analyse_channels(capture(Custom().eval(), (images(),)))
    assert not analysis.groups
    assert analysis.frozen[0].reason == "djpq_tests::scale at 'scale' has no channel rule"


def test_registered_rule_is_used() -> None:
    operator = torch.ops.djpq_tests.scale.default

    @register_channel_rule(operator)
    def pass_through(node: Node, context: RuleContext) -> None:
        (source,) = node.all_input_nodes
        context.set(node, context.labels(source))

    @register_rewrite(operator)
    def count_anew(node: Node, removal: Removal) -> None:
        labels = removal.labels(node)[1]
        assert labels is not None
        node.update_arg(1, len(removal.kept(labels)))

    x = images()
    network = insert_into(Custom(), x, **PRUNING_ONLY)
    assert {name: group.size for name, group in network.analysis.groups.items()} == {"first": 8}
    random_gates(network.gates, 0, nearly_all=False)
    stripped = remove(network.model, network.analysis, kept_channels(network.analysis, network.gates))
    with torch.no_grad():
        torch.testing.assert_close(stripped(x), network.model.eval()(x))


def test_rule_for_a_module_class_serves_its_subclasses() -> None:
    class Doubling(nn.BatchNorm2d): ...

    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1)))
    node = next(node for node in graph.graph.nodes if node.op == "call_module")
    graph.add_submodule("0", Doubling(4))
    assert _registry.find_rule(node) is _registry._RULES[nn.BatchNorm2d]
