# SPDX-License-Identifier: Apache-2.0
"""A small network with the channel groups it must have, written by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from djpq_nncf.channels import ChannelAnalysis

Members = set[tuple[str, int, int]]
"""(parameter, dimension, slices that go with one channel)"""

Groups = Mapping[str, tuple[int, Members]]
"""Name -> number of channels, and where each of them lives."""


class Net(nn.Module):
    """A function of its inputs, with layers and tensors as attributes of its first argument."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self._function(self, *inputs)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Apply(nn.Module):
    """A function as a module, so that it has a path."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and the groups expected, in their order.

    Attributes:
        build: makes the network.
        groups: what the analysis must find, no more and no less.
        inputs: makes example inputs.
    """

    build: Callable[[], nn.Module]
    groups: Groups
    inputs: Callable[[], tuple[Tensor, ...]]


def images(size: int = 4) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size, dtype=torch.float64),)


def tokens(batch: int = 2, count: int = 5, features: int = 6) -> tuple[Tensor, ...]:
    return (torch.randn(batch, count, features, dtype=torch.float64),)


def words() -> tuple[Tensor, ...]:
    return (torch.randint(0, 10, (2, 5)),)


def found_groups(analysis: ChannelAnalysis) -> dict[str, tuple[int, Members]]:
    return {
        group.name: (group.size, {(member.parameter, member.dim, member.multiplicity) for member in group.members})
        for group in analysis.groups.values()
    }


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def rows(name: str, times: int = 1) -> Members:
    """Entries of a tensor along its first dimension."""
    return {(name, 0, times)}


def weight(layer: str, times: int = 1) -> Members:
    """Output channels of a layer without bias."""
    return rows(f"{layer}.weight", times)


def layer(name: str, times: int = 1) -> Members:
    """Output channels of a layer with bias, or the entries of a norm without statistics."""
    return weight(name, times) | rows(f"{name}.bias", times)


def norm(name: str, times: int = 1) -> Members:
    return {(f"{name}.{part}", 0, times) for part in ("weight", "bias", "running_mean", "running_var")}


def reads(layer: str, times: int = 1) -> Members:
    """Input channels of a layer."""
    return {(f"{layer}.weight", 1, times)}
