# SPDX-License-Identifier: Apache-2.0
"""The form of a captured graph that other tools read: operators only."""

import copy
from typing import Any

import torch
from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from djpq_nncf.capture._shapes import propagate_shapes
from djpq_nncf.capture._state import CAPTURED_KEY
from djpq_nncf.capture._train_only import AttentionDropout


def to_functional(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy for inference: BatchNorm modules become ``aten.batch_norm.default`` calls, dropout of any kind is gone.

    Node names stay; the parameters of BatchNorm become ``get_attr`` nodes. Other modules are left alone.
    """
    result = copy.deepcopy(gm).eval()
    result.meta.pop(CAPTURED_KEY, None)
    modules = dict(result.named_modules(remove_duplicate=False))
    for node in list(result.graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, _BatchNorm):
            _expand_batch_norm(result.graph, node, module)
        elif isinstance(module, _DropoutNd):
            node.replace_all_uses_with(node.args[0])
            result.graph.erase_node(node)
        elif isinstance(module, AttentionDropout):
            _replace_with_zero(node)
            result.graph.erase_node(node)
    result.graph.lint()
    result.recompile()
    propagate_shapes(result)
    return result


def _replace_with_zero(node: fx.Node) -> None:
    def zero(argument: fx.Node) -> Any:
        return 0.0 if argument is node else argument

    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(user.args, zero), fx.map_arg(user.kwargs, zero)


def _expand_batch_norm(graph: fx.Graph, node: fx.Node, module: _BatchNorm) -> None:
    present = {n.target: n for n in graph.find_nodes(op="get_attr")}
    first = next(n for n in graph.nodes if n.op != "placeholder")
    args: list[fx.Node | None] = []
    for name in ("weight", "bias", "running_mean", "running_var"):
        target = f"{node.target}.{name}"
        if getattr(module, name) is None:
            args.append(None)
            continue
        if target not in present:
            with graph.inserting_before(first):
                present[target] = graph.get_attr(target)
        args.append(present[target])
    momentum = 0.0 if module.momentum is None else module.momentum
    # Without running statistics BatchNorm uses those of the batch in eval mode too.
    use_batch_statistics = module.running_mean is None
    node.args = (node.args[0], *args, use_batch_statistics, momentum, module.eps, False)
    node.op = "call_function"
    node.target = torch.ops.aten.batch_norm.default
