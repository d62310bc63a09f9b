# SPDX-License-Identifier: Apache-2.0
"""What the analysis reads off a node by itself: its shape, and its place in the model."""

from typing import Any

import torch
from torch.fx import Node

from djpq_nncf.capture import layer_name


def shape_of(node: Node) -> tuple[int, ...]:
    """Concrete shape of a node's tensor value (that of the example batch)."""
    return tuple(int(size) for size in node.meta["val"].shape)


def is_tensor(value: object) -> bool:
    """Whether an argument is a node with a tensor value."""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)


def where(node: Node, what: str) -> str:
    """A reason, with operator and module path."""
    name = getattr(node.target, "name", None)
    operator = name() if callable(name) else str(node.target)
    return f"{operator} at '{layer_name(node)}' {what}"


def may_shrink(node: Node) -> bool:
    """Whether a value has channels at all: indices and masks have none."""
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def ranks(node: Node) -> list[int]:
    """Number of dimensions of each output."""
    value: Any = node.meta["val"]
    return [int(one.dim()) for one in (value if isinstance(value, (list, tuple)) else [value])]
