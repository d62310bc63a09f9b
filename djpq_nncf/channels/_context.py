# SPDX-License-Identifier: Apache-2.0
"""What a channel rule sees and may say: the labels of its inputs, ties, freezes, and the labels of its output."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, Node

from djpq_nncf.capture import layer_name
from djpq_nncf.channels._groups import Consumer
from djpq_nncf.channels._labels import ChannelSet, Labels, TensorLabels, all_labels


def shape_of(node: Node) -> tuple[int, ...]:
    """Concrete shape of a node's tensor value (that of the example batch)."""
    return tuple(int(size) for size in node.meta["val"].shape)


def is_tensor(value: object) -> bool:
    """Whether an argument is a node with a tensor value."""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)


def concrete(argument: Any) -> Any:
    """An argument with integer-valued nodes (sizes) replaced by their value for the example batch."""
    return torch.fx.node.map_arg(
        argument, lambda node: node if isinstance(node.meta.get("val"), torch.Tensor) else node.meta["val"]
    )


class RuleContext:
    """Labels of every value seen so far; rules read from it and write to it."""

    def __init__(self) -> None:
        self.channels = ChannelSet()
        self.values: dict[Node, TensorLabels | list[TensorLabels]] = {}
        self.consumers: list[Consumer] = []
        self.producers: list[tuple[str, Labels]] = []
        self.module_parameters: dict[str, TensorLabels] = {}
        self._bound_by: dict[tuple[str, int], set[Node]] = {}

    def labels(self, node: Node) -> TensorLabels:
        """Labels of a tensor-valued node; nothing is known of a node without any."""
        value = self.values.get(node)
        if value is None:
            return (None,) * len(shape_of(node))
        if isinstance(value, list):
            raise TypeError(f"{node.name} has several outputs")
        return value

    def set(self, node: Node, labels: Sequence[Labels | None]) -> None:
        """Say which channels live along each dimension of the node's value."""
        self.values[node] = tuple(labels)

    def bind_parameter(self, user: Node, parameter: Node, dim: int, ids: Labels) -> None:
        """``user`` needs dimension ``dim`` of a parameter to run over these channels."""
        self._bound_by.setdefault((str(parameter.target), dim), set()).add(user)
        current = list(self.labels(parameter))
        known = current[dim]
        if known is None:
            current[dim] = ids
            self.set(parameter, current)
        else:
            self.channels.tie(known, ids)

    def bind_module_parameter(self, user: Node, name: str, ids: Labels) -> None:
        """As :meth:`bind_parameter`, for a one-dimensional parameter of the module that ``user`` calls."""
        self._bound_by.setdefault((name, 0), set()).add(user)
        known = self.module_parameters.get(name)
        if known is None or known[0] is None:
            self.module_parameters[name] = (ids,)
        else:
            self.channels.tie(known[0], ids)

    def freeze_contested_parameters(self, graph: Graph) -> None:
        """A parameter may shrink only if every operator that reads it agrees."""
        readers: dict[str, set[Node]] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                readers.setdefault(str(node.target), set()).update(node.users)
            elif node.op == "call_module":
                for name in self.module_parameters:
                    if name.rpartition(".")[0] == node.target:
                        readers.setdefault(name, set()).add(node)
        labels = {str(node.target): value for node, value in self.values.items() if node.op == "get_attr"}
        for (name, dim), users in self._bound_by.items():
            others = readers[name] - users
            if others:
                ids = (self.module_parameters.get(name) or labels[name])[dim]
                assert isinstance(ids, np.ndarray)
                self.channels.freeze(ids, where(next(iter(others)), f"reads '{name}' as it is"))

    def produce(self, node: Node, count: int) -> Labels:
        """Fresh output channels of a layer."""
        ids = self.channels.new(count)
        self.producers.append((layer_name(node), ids))
        return ids

    def consume(self, node: Node, weight: Node, dim: int) -> None:
        """``node`` mixes its input channels with ``weight`` along ``dim``: a gate can act there."""
        self.consumers.append(Consumer(node.name, str(weight.target), dim))

    def freeze_inputs(self, node: Node, reason: str) -> None:
        """Every channel that reaches ``node`` stays."""
        for source in node.all_input_nodes:
            value = self.values.get(source)
            for labels in value if isinstance(value, list) else [value]:
                if labels is not None:
                    self.channels.freeze(all_labels(labels), reason)

    def follow(self, node: Node, source: Node, move: Callable[[torch.Tensor], Any]) -> None:
        """Label the output of an operator that only moves elements of ``source``, by moving their indices.

        A labelled dimension must stay one dimension (repetition, selection and flattening together with
        unlabelled dimensions are fine); where it is torn apart, its channels are frozen.
        """
        shape = shape_of(source)
        value = node.meta["val"]
        outputs = list(value) if isinstance(value, (list, tuple)) else [value]
        results: list[list[Labels | None]] = [[None] * out.dim() for out in outputs]
        for dim, ids in enumerate(self.labels(source)):
            if ids is None:
                continue
            line = torch.arange(1, len(ids) + 1).reshape([-1 if d == dim else 1 for d in range(len(shape))])
            moved = move(line.expand(shape))
            for result, index in zip(results, moved if isinstance(moved, (list, tuple)) else [moved], strict=True):
                varying = [d for d in range(index.dim()) if _varies(index, d)]
                if len(varying) > 1:
                    self.channels.freeze(ids, where(node, "tears the channel dimension apart"))
                    continue
                if not varying:  # one channel, or a selection of one: as wide as it gets
                    if index.numel() and len(ids) > 1:
                        self.channels.freeze(ids, where(node, "selects single channels"))
                    continue
                target = varying[0]
                first = index.movedim(target, 0).reshape(index.shape[target], -1)[:, 0].numpy()
                moved_ids = np.where(first > 0, ids[np.maximum(first, 1) - 1], -1)
                if (moved_ids < 0).any():  # padding along the channel dimension
                    padding = self.channels.new(int((moved_ids < 0).sum()))
                    self.channels.freeze(padding, where(node, "pads the channel dimension"))
                    moved_ids[moved_ids < 0] = padding
                known = result[target]
                if known is not None:
                    self.channels.freeze(ids, where(node, "merges two channel dimensions"))
                    self.channels.freeze(known, where(node, "merges two channel dimensions"))
                    continue
                result[target] = moved_ids
        if isinstance(value, (list, tuple)):
            self.values[node] = [tuple(result) for result in results]
        else:
            self.set(node, results[0])


def where(node: Node, what: str) -> str:
    """A reason, with operator and module path."""
    name = getattr(node.target, "name", None)
    operator = name() if callable(name) else str(node.target)
    return f"{operator} at '{layer_name(node)}' {what}"


def _varies(index: torch.Tensor, dim: int) -> bool:
    return index.shape[dim] > 1 and not torch.equal(index.narrow(dim, 0, 1).expand_as(index), index)
