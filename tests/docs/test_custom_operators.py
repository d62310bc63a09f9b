# SPDX-License-Identifier: Apache-2.0
"""docs/custom_operators.md does what it says."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from djpq_nncf import create_compressed_model
from djpq_nncf.channels import RuleContext, _registry, register_channel_rule

PAGE = Path(__file__).parents[2] / "docs" / "custom_operators.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLE, SHUFFLE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(PRINTED,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
(SHORT,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", (PAGE.parents[1] / "README.md").read_text("utf-8"), re.DOTALL)
    if "register_channel_rule" in block
)
BY_HAND = {"algorithm": "djpq", "pruning": {"gamma": 0}, "quantization": {"enabled": False}}


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """What the page defines, once its example ran as it is printed; its rules are gone after the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registry, "_RULES", dict(_registry._RULES))
        patch.setattr(_registry, "_REWRITES", dict(_registry._REWRITES))
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(EXAMPLE, str(PAGE), "exec"), names)
        names["printed"] = printed.getvalue()
        exec(compile(SHUFFLE, str(PAGE), "exec"), names)
        yield names


def test_example(page: dict[str, Any]) -> None:
    assert page["printed"] == PRINTED


def test_example_without_its_rule(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry._RULES, torch.ops.acme.gain.default)
    ctrl, _ = create_compressed_model(page["Network"](), {"compression": BY_HAND}, example_inputs=page["x"])
    assert not ctrl.groups
    first, *_ = ctrl.statistics().djpq.frozen_channels
    assert str(first) == "first: 8 channels stay, acme::gain at 'gain' has no channel rule"
    assert f"  {first}\n" in ctrl.statistics().to_str()


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.ops.acme.shuffle(torch.sigmoid(self.first(x)), 4))


def test_shuffle(page: dict[str, Any]) -> None:
    x, network = page["x"], Shuffled().eval()
    ctrl, _ = create_compressed_model(network, {"compression": BY_HAND}, example_inputs=x)
    closed = [0, 3, 4]
    ctrl.groups["first"].close(closed)
    ctrl.freeze()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # of the channels after the shuffle
    left = [position for position, channel in enumerate(order) if channel not in closed]
    with torch.no_grad():
        shuffled = torch.sigmoid(network.first(x))[:, order]
        expected = nn.functional.conv2d(shuffled[:, left], network.second.weight[:, left], network.second.bias)
        torch.testing.assert_close(ctrl.strip()(x), expected)


@torch.library.custom_op("acme::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@swish.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return swish(x)


def test_rule_of_the_readme(page: dict[str, Any]) -> None:
    exec(SHORT, {"torch": torch, **page})
    network = nn.Sequential(nn.Conv2d(3, 8, 1), Swish(), nn.Conv2d(8, 5, 1))
    ctrl, _ = create_compressed_model(network, {"compression": BY_HAND}, example_inputs=page["x"])
    assert {name: group.size for name, group in ctrl.groups.items()} == {"0": 8}


@torch.library.custom_op("acme::centre", mutates_args=())
def centre(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


@centre.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Centre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return centre(x)


def test_operator_that_relates_channels(page: dict[str, Any]) -> None:
    assert "context.only_open(node, (source, dim), output=[dim])" in TEXT

    @register_channel_rule(torch.ops.acme.centre.default)
    def centre_rule(node: Node, context: RuleContext) -> None:
        (source,) = node.all_input_nodes
        context.set(node, context.labels(source))
        context.only_open(node, (source, 1), output=[1])

    x = page["x"]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), Centre(), nn.Conv2d(8, 5, 1)).eval()
    ctrl, model = create_compressed_model(network, {"compression": BY_HAND}, example_inputs=x)
    ctrl.groups["0"].close([2, 7])
    ctrl.freeze()
    kept = [0, 1, 3, 4, 5, 6]
    with torch.no_grad():
        expected = nn.functional.conv2d(centre(network[0](x)[:, kept]), network[2].weight[:, kept], network[2].bias)
        torch.testing.assert_close(ctrl.strip()(x), expected)
        torch.testing.assert_close(model.eval()(x), expected)
