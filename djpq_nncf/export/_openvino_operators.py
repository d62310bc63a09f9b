# SPDX-License-Identifier: Apache-2.0
"""Writes what torch.export would take to pieces as operators that OpenVINO has kernels for."""

from typing import Any

import openvino.opset13 as ops
import torch
from torch import Tensor, fx

from djpq_nncf.export._markers import NAMESPACE

_aten = torch.ops.aten
_POOLS: dict[Any, tuple[int, Any]] = {
    _aten.adaptive_avg_pool1d.default: (1, _aten.avg_pool1d.default),
    _aten.adaptive_avg_pool2d.default: (2, _aten.avg_pool2d.default),
    _aten.adaptive_avg_pool3d.default: (3, _aten.avg_pool3d.default),
}


def keep_operators(graph: fx.Graph) -> None:
    """Rewrites the graph of an exported program, in place."""
    for node in list(graph.nodes):
        if node.target in _POOLS:
            _write_average(graph, node)
        elif node.target is _aten.prelu.default:
            node.target = torch.ops.djpq_nncf.prelu.default
    graph.eliminate_dead_code()


def _write_average(graph: fx.Graph, node: fx.Node) -> None:
    """As a mean over all positions, or over windows that are all alike; else it stays as it is."""
    dims, pool = _POOLS[node.target]
    arguments: Any = node.args
    source, windows = arguments
    sizes = source.meta["val"].shape[-dims:]
    if all(count == 1 for count in windows):
        node.target, node.args = _aten.mean.dim, (source, list(range(-dims, 0)), True)
    elif not all(isinstance(size, int) for size in (*sizes, *windows)):
        return
    elif all(size % count == 0 for size, count in zip(sizes, windows, strict=True)):
        widths = [size // count for size, count in zip(sizes, windows, strict=True)]
        if all(width == 1 for width in widths):
            node.replace_all_uses_with(source)
        else:
            node.target, node.args = pool, (source, widths, widths)


@torch.library.custom_op(f"{NAMESPACE}::prelu", mutates_args=())
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``aten.prelu``, which torch.export leaves in one piece."""
    return torch.nn.functional.prelu(x, slope)


@prelu.register_fake
def _(x: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(x)


def convert_prelu(context: Any) -> list[Any]:
    """For OpenVINO's frontend."""
    return list(ops.prelu(context.get_input(0), context.get_input(1)).outputs())
