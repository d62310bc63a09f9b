# SPDX-License-Identifier: Apache-2.0
"""Which values cannot be negative, or only a little, and which operators only see to that."""

import math
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_MAKES = {
    aten.abs.default, aten.exp.default, aten.hardsigmoid.default, aten.linalg_vector_norm.default,
    aten.relu.default, aten.relu6.default, aten.rsqrt.default, aten.sigmoid.default, aten.softmax.int,
    aten.softplus.default, aten.sqrt.default, aten.square.default,
}  # fmt: skip
_KEEPS = {
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    aten.add.Tensor, aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.cat.default,
    aten.clone.default, aten.contiguous.default, aten.div.Tensor, aten.expand.default, aten.flatten.using_ints,
    aten.index.Tensor, aten.masked_fill.Scalar, aten.max_pool1d.default, aten.max_pool2d.default,
    aten.max_pool3d.default, aten.mean.dim, aten.mul.Tensor, aten.permute.default, aten.reshape.default,
    aten.select.int, aten.slice.Tensor, aten.squeeze.dim, aten.transpose.int, aten.unflatten.int,
    aten.unsqueeze.default, aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten.view.default,
}  # fmt: skip
# whose negative values are small, whatever the input
_MAKES_SMALL = {
    aten.elu.default, aten.gelu.default, aten.hardswish.default, aten.mish.default, aten.silu.default,
}  # fmt: skip
# what follows the first input are indices or a mask
_SELECTING = {aten.index.Tensor, aten.masked_fill.Scalar}
_ARITHMETIC = {aten.add.Tensor, aten.div.Tensor, aten.masked_fill.Scalar, aten.mul.Tensor}
_CLAMPS = {aten.hardtanh.default: 1, aten.clamp.default: 1, aten.clamp_min.default: 1}
_DEFAULT_LOWER = {aten.hardtanh.default: -1}


def find_nonnegative(model: GraphModule) -> set[str]:
    """Names of the nodes whose value is never negative, whatever the input."""
    return _find(model, _MAKES)


def find_skewed(model: GraphModule) -> set[str]:
    """Names of the nodes whose negative values, if any, are much smaller than the positive ones.

    That is how it is behind h-swish, SiLU or GELU. Where such values are multiplied with each other, or reach a sum
    from several sides, it is a guess.
    """
    return _find(model, _MAKES | _MAKES_SMALL)


def _find(model: GraphModule, makes: AbstractSet[Any]) -> set[str]:
    found: set[Node] = set()
    for node in model.graph.nodes:
        if node.target in makes:
            found.add(node)
        elif node.target in _CLAMPS:
            lower = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", _DEFAULT_LOWER.get(node.target))
            if isinstance(lower, (int, float)) and lower >= 0:
                found.add(node)
        elif node.target in _KEEPS or _is_dropout(model, node):
            sources = [source for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)]
            if node.target in _SELECTING:
                sources = sources[:1]
            scalars = [v for v in (*node.args[1:], *node.kwargs.values()) if isinstance(v, (int, float))]
            negative = node.target in _ARITHMETIC and any(value < 0 for value in scalars)
            if all(source in found for source in sources) and not negative:
                found.add(node)
    return {node.name for node in found}


def rectifier_bound(node: Node) -> float | None:
    """The upper bound of a ReLU, infinity for a plain one; None if the node is something else."""
    if node.target is aten.relu.default:
        return math.inf
    if node.target is aten.relu6.default:
        return 6.0
    if node.target in (aten.hardtanh.default, aten.clamp.default) and len(node.args) == 3:
        _, low, high = node.args
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low == 0 < high:
            return float(high)
    return None


def _is_dropout(model: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.modules.dropout._DropoutNd)
