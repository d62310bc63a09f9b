# SPDX-License-Identifier: Apache-2.0
"""Which values cannot be negative, so that an unsigned grid serves them."""

import torch
from torch import nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_MAKES = {
    aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.abs.default,
    aten.softmax.int, aten.square.default, aten.exp.default, aten.softplus.default,
}  # fmt: skip
_KEEPS = {
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.contiguous.default, aten.clone.default, aten.squeeze.dim, aten.unsqueeze.default, aten.slice.Tensor,
    aten.max_pool2d.default, aten.max_pool1d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool1d.default, aten.mean.dim, aten.cat.default, aten.add.Tensor, aten.mul.Tensor,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec,
}  # fmt: skip
_CLAMPS = {aten.hardtanh.default: 1, aten.clamp.default: 1, aten.clamp_min.default: 1}
_DEFAULT_LOWER = {aten.hardtanh.default: -1}


def find_nonnegative(model: GraphModule) -> set[str]:
    """Names of the nodes whose value is never negative, whatever the input."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        if node.target in _MAKES:
            found.add(node)
        elif node.target in _CLAMPS:
            lower = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", _DEFAULT_LOWER.get(node.target))
            if isinstance(lower, (int, float)) and lower >= 0:
                found.add(node)
        elif node.target in _KEEPS or _is_dropout(model, node):
            sources = [source for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)]
            scalars = [v for v in (*node.args[1:], *node.kwargs.values()) if isinstance(v, (int, float))]
            arithmetic = node.target in (aten.add.Tensor, aten.mul.Tensor)
            if all(source in found for source in sources) and not (arithmetic and any(v < 0 for v in scalars)):
                found.add(node)
    return {node.name for node in found}


def _is_dropout(model: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.modules.dropout._DropoutNd)
