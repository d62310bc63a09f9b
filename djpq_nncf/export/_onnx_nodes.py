# SPDX-License-Identifier: Apache-2.0
"""Small edits of an ONNX graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read ``value``, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is an initializer."""
    return value is not None and value.const_value is not None


def is_packed(value: ir.Value | None) -> bool:
    """Whether ``value`` has several elements in a byte."""
    return value is not None and value.dtype is not None and value.dtype.bitwidth < 8


def constant_value(value: ir.Value | None) -> NDArray[Any]:
    """What an initializer holds."""
    if value is None or value.const_value is None:
        raise ValueError(f"{value} is not an initializer")
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, data: NDArray[Any] | np.generic) -> ir.Value:
    """Adds an initializer; a name that is taken gets a number."""
    free, number = name, 0
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    tensor = ir.tensor(np.asarray(data), name=free)
    value = ir.Value(
        name=free, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def insert_before(
    node: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str,
) -> ir.Value:
    """Adds a node in front of ``node`` and returns its output."""
    new = ir.node(operator, list(inputs), dict(attributes or {}), name=name)
    new.outputs[0].name = f"{name}_output"
    assert node.graph is not None
    node.graph.insert_before(node, new)
    return new.outputs[0]


def replace(old: ir.Value, new: ir.Value) -> None:
    """Makes everything that reads ``old`` read ``new`` and removes the node that made ``old``.

    A graph output keeps its name.
    """
    graph, producer = old.graph, old.producer()
    if graph is not None and old.is_graph_output():
        name, new.shape, new.type = old.name, old.shape, old.type
        old.name = f"{name}_replaced"
        new.name = name
        graph.outputs[graph.outputs.index(old)] = new
    old.replace_all_uses_with(new)
    if producer is not None and graph is not None:
        graph.remove(producer, safe=True)


def remove_unused(graph: ir.Graph) -> None:
    """Drops nodes nothing reads and initializers nothing reads."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
