# SPDX-License-Identifier: Apache-2.0
"""Inlines the sub-graphs torch.export makes for ``torch.no_grad()`` and ``torch.autocast(enabled=False)``."""

import operator
from typing import Any

import torch
from torch import fx

from djpq_nncf.capture._names import module_label
from djpq_nncf.errors import CaptureError


def inline_contexts(gm: fx.GraphModule) -> None:
    """Make the graph flat; what was computed without gradients is detached.

    Raises:
        CaptureError: a sub-graph that means something else (conditions, loops, autocast).
    """
    for call in [n for n in gm.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator)]:
        _inline(gm, call)
    gm.graph.eliminate_dead_code()


def _inline(gm: fx.GraphModule, call: fx.Node) -> None:
    name = str(call.target)
    args: tuple[Any, ...] = call.args
    if name == "wrap_with_set_grad_enabled":
        detached, body, inputs = not args[0], args[1], args[2:]
    elif name == "wrap_with_autocast" and args[2] is False:
        detached, body, inputs = False, args[4], args[5:]
    else:
        raise CaptureError(
            f"{module_label(call)} uses {name}, which cannot be part of a trainable graph. Write it with "
            "plain tensor operations, outside of torch.autocast and without torch.cond or loops."
        )
    inner = gm.get_submodule(str(body.target))
    assert isinstance(inner, fx.GraphModule)
    inline_contexts(inner)
    graph = inner.graph
    placeholders = graph.find_nodes(op="placeholder", sort=True)
    copies: dict[fx.Node, fx.Node] = dict(zip(placeholders, inputs, strict=True))
    with gm.graph.inserting_before(call):
        outputs = gm.graph.graph_copy(graph, copies)
        results: list[Any] = list(outputs)  # type: ignore[arg-type]
        if detached:
            results = [_detach(gm.graph, result) for result in results]
    for user in list(call.users):
        assert user.target is operator.getitem, "sub-graphs return tuples"
        index: Any = user.args[1]
        user.replace_all_uses_with(results[index])
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)


def _detach(graph: fx.Graph, result: Any) -> Any:
    if not isinstance(result, fx.Node) or not isinstance(result.meta.get("val"), torch.Tensor):
        return result
    detached = graph.call_function(torch.ops.aten.detach.default, (result,))
    detached.meta = dict(result.meta)
    return detached
