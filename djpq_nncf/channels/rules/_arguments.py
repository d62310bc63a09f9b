# SPDX-License-Identifier: Apache-2.0
"""Arguments of ATen calls by name."""

from typing import Any

from torch._ops import OpOverload
from torch.fx import Node


def argument(node: Node, name: str) -> Any:
    """Value of a call's argument, its default if it was left out."""
    assert isinstance(node.target, OpOverload)
    for position, declared in enumerate(node.target._schema.arguments):
        if declared.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, declared.default_value)
    raise KeyError(f"{node.target} has no argument '{name}'")


def set_argument(node: Node, name: str, value: Any) -> None:
    """Change a call's argument, given or defaulted."""
    assert isinstance(node.target, OpOverload)
    names = [declared.name for declared in node.target._schema.arguments]
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)
