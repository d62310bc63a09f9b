# SPDX-License-Identifier: Apache-2.0
"""The list of architectures: how to build each one, as published and as a small relative."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.zoo.randomize import randomize


@dataclass(frozen=True)
class Example:
    """A model in eval mode with random weights, and inputs of batch two for it."""

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    @property
    def batch(self) -> int:
        """Samples in the inputs."""
        return len(next(leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)))

    def inputs(self, *, batch: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the inputs (models may write into them), of the first ``batch`` samples."""
        copied: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
            Tensor, lambda x: x[:batch].clone(), (self.args, self.kwargs or {})
        )
        return copied

    def double(self) -> "Example":
        """The same in double precision."""
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda x: x.double() if x.is_floating_point() else x, (self.args, self.kwargs)
        )
        return Example(self.module.double(), args, kwargs)

    def describe_inputs(self) -> str:
        """Shapes, for the table: "2x3x224x224"."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return ", ".join("x".join(map(str, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class ZooModel:
    """An architecture.

    Attributes:
        name: unique; that of the library where there is one.
        family: architectures that share their building blocks.
        full: the architecture of the publication at its standard input size (Hugging Face: fewer or narrower
            layers where the published size is a matter of scale only).
        small: the same classes in seconds: few layers or a small input.
    """

    name: str
    family: str
    full: Callable[[], Example]
    small: Callable[[], Example]

    def build(self, size: str) -> Example:
        """The same weights and inputs in every call. ``size`` is "full" or "small"."""
        torch.manual_seed(0)
        example = {"full": self.full, "small": self.small}[size]()
        example.module.eval().requires_grad_(True)
        randomize(example.module, lambda: example.module(*example.inputs()[0], **example.inputs()[1]))
        return example


ZOO: dict[str, ZooModel] = {}
"""Every architecture by name; the first of a family is its representative in ``make test``."""


def add(name: str, family: str, *, full: Callable[[], Example], small: Callable[[], Example]) -> None:
    """Enter an architecture into the zoo."""
    if name in ZOO:
        raise ValueError(f"{name!r} is in the zoo already")
    ZOO[name] = ZooModel(name, family, full, small)


def representatives() -> list[str]:
    """One architecture of each family, the first that was added."""
    first: dict[str, str] = {}
    for model in ZOO.values():
        first.setdefault(model.family, model.name)
    return list(first.values())
