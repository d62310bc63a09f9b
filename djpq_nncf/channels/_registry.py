# SPDX-License-Identifier: Apache-2.0
"""Registries of channel rules and of the rewrites that removal needs, by operator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._groups import ChannelAnalysis, kept_indices
from djpq_nncf.channels._labels import Labels, TensorLabels
from djpq_nncf.channels._nodes import shape_of

ChannelRule = Callable[[Node, RuleContext], None]


@dataclass(frozen=True)
class Removal:
    """Which channels remain, for the rewrites of constants that depend on channel counts."""

    analysis: ChannelAnalysis
    keep: np.ndarray

    def labels(self, node: Node) -> TensorLabels:
        """Labels of a node's value before the removal; an inserted quantizer has those of its input."""
        if node.op == "get_attr":
            return self.parameter_labels(str(node.target))
        while node.name not in self.analysis.node_labels and node.op == "call_module" and node.args:
            (node,) = node.all_input_nodes
        return self.analysis.node_labels.get(node.name, ())

    def size(self, node: Node, dim: int) -> int:
        """Size of a dimension of a node's value after the removal."""
        labels = self.labels(node)
        ids = labels[dim] if labels else None
        return shape_of(node)[dim] if ids is None else len(self.kept(ids))

    def shrinks(self, node: Node, dim: int) -> bool:
        """Whether a dimension of a node's value loses channels."""
        return self.size(node, dim) < shape_of(node)[dim]

    def parameter_size(self, name: str, shape: tuple[int, ...], dim: int) -> int:
        """Size of a dimension of a parameter after the removal."""
        labels = self.parameter_labels(name)
        ids = labels[dim] if labels else None
        return shape[dim] if ids is None else len(self.kept(ids))

    def kept(self, labels: Labels) -> Labels:
        """Indices that remain along a dimension."""
        return kept_indices(labels, self.keep)

    def parameter_labels(self, name: str) -> TensorLabels:
        """Labels of a parameter or buffer before the removal."""
        return self.analysis.parameter_labels.get(name, ())


Rewrite = Callable[[Node, Removal], None]

_RULES: dict[Any, ChannelRule] = {}
_REWRITES: dict[Any, Rewrite] = {}


def register_channel_rule(*operators: Any) -> Callable[[ChannelRule], ChannelRule]:
    """Register how channels pass through operators.

    Args:
        operators: ATen (or custom) operator overloads, or classes of the modules a call_module node calls.
    """

    def register(rule: ChannelRule) -> ChannelRule:
        for operator in operators:
            _RULES[operator] = rule
        return rule

    return register


def register_rewrite(*operators: Any) -> Callable[[Rewrite], Rewrite]:
    """Register how the constant arguments of operators change once channels are gone (sizes, groups)."""

    def register(rewrite: Rewrite) -> Rewrite:
        for operator in operators:
            _REWRITES[operator] = rewrite
        return rewrite

    return register


def operator_key(node: Node) -> Any:
    """What a node is registered under: its operator, or the class of the module it calls."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        assert owner is not None
        return type(owner.get_submodule(str(node.target)))
    return node.target


def find_rule(node: Node) -> ChannelRule | None:
    """The rule for a node, if there is one; a module class inherits the rule of its bases."""
    return _find(_RULES, operator_key(node))


def find_rewrite(node: Node) -> Rewrite | None:
    """The rewrite for a node, if it needs one."""
    return _find(_REWRITES, operator_key(node))


def _find(registry: dict[Any, Any], key: Any) -> Any:
    if isinstance(key, type) and issubclass(key, nn.Module):
        return next((registry[base] for base in key.__mro__ if base in registry), None)
    return registry.get(key)
