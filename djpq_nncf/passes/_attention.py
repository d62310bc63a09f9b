# SPDX-License-Identifier: Apache-2.0
"""The FX pass that writes attention as products, so that their inputs can be quantized."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from djpq_nncf.capture import propagate_shapes
from djpq_nncf.capture._state import add_constant, replace_module
from djpq_nncf.capture._train_only import AttentionDropout
from djpq_nncf.cost._dataflow import SHAPE_ONLY, is_floating

aten = torch.ops.aten

_KEPT_META = ("nn_module_stack", "stack_trace")
_NEW = {aten.new_empty.default, aten.new_full.default, aten.new_ones.default, aten.new_zeros.default}


def decompose_attention(model: GraphModule) -> GraphModule:
    """A copy of a captured graph in which every ``scaled_dot_product_attention`` is written out.

    Matmul with the transposed key, scale, mask, softmax, dropout, matmul: the same numbers up to float rounding, also
    for a query that may attend to nothing (zeros), and for every batch size. A mask that hides nothing is left out.

    Args:
        model: a captured graph; one without such operators is returned as it is.
    """
    targets = {aten.scaled_dot_product_attention.default}
    if not any(node.target in targets for node in model.graph.nodes):
        return model
    model = copy.deepcopy(model)
    for node in list(model.graph.nodes):
        if node.target in targets:
            _decompose(model, node)
    model.graph.eliminate_dead_code()
    model.graph.lint()
    model.recompile()
    propagate_shapes(model)
    return model


class _Writer:
    """Writes operators in front of a node, with its place in the module tree."""

    def __init__(self, node: Node) -> None:
        self._graph: Graph = node.graph
        self._node = node
        self._meta: dict[str, Any] = {key: node.meta[key] for key in _KEPT_META if key in node.meta}

    def __call__(self, operator: Callable[..., Any], *args: Any) -> Node:
        with self._graph.inserting_before(self._node):
            result = self._graph.create_node("call_function", operator, args, name=str(operator).split(".")[1])
        result.meta = dict(self._meta)
        return result

    def module(self, path: str, x: Node) -> Node:
        """Calls a module."""
        with self._graph.inserting_before(self._node):
            result = self._graph.call_module(path, (x,))
        result.meta = dict(self._meta)
        return result

    def attribute(self, path: str) -> Node:
        """Reads a constant."""
        with self._graph.inserting_before(self._node):
            return self._graph.get_attr(path)


def _decompose(model: GraphModule, node: Node) -> None:
    arguments = _arguments(node)
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    width = int(query.meta["val"].shape[-1])
    write = _Writer(node)
    if arguments["enable_gqa"]:
        heads = int(query.meta["val"].shape[-3])
        key, value = _repeat_heads(write, key, heads), _repeat_heads(write, value, heads)
    scale = 1 / math.sqrt(width) if arguments["scale"] is None else arguments["scale"]
    # the product comes first, so that what is quantized is what the layers in front of it return
    scores = write(aten.mul.Tensor, write(aten.matmul.default, query, write(aten.transpose.int, key, -2, -1)), scale)
    hidden = None
    if arguments["is_causal"]:
        scores = write(aten.masked_fill.Scalar, scores, _future(model, write, query, arguments["key"]), -math.inf)
    elif arguments["attn_mask"] is not None:
        scores, hidden = _mask(write, scores, arguments["attn_mask"], query.meta["val"].dtype)
    weights = write(aten.softmax.int, scores, -1)
    if hidden is not None:
        weights = write(aten.masked_fill.Scalar, weights, hidden, 0.0)
    dropout = arguments["dropout_p"]
    if isinstance(dropout, Node):
        weights = write.module(_as_dropout(model, str(dropout.target)), weights)
    elif dropout:
        weights = write(aten.dropout.default, weights, dropout, True)
    node.replace_all_uses_with(write(aten.matmul.default, weights, value))
    model.graph.erase_node(node)
    if isinstance(dropout, Node) and not dropout.users:
        model.graph.erase_node(dropout)


def _as_dropout(model: GraphModule, path: str) -> str:
    """What tells the operator its probability in the current mode becomes a dropout like any other."""
    module = model.get_submodule(path)
    if isinstance(module, AttentionDropout):
        replace_module(model, path, nn.Dropout(module.p))
    return path


def _arguments(node: Node) -> dict[str, Any]:
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | given | dict(node.kwargs)


def _repeat_heads(write: _Writer, x: Node, heads: int) -> Node:
    """Each head of the key or value serves ``heads / own`` consecutive heads of the query."""
    shape = x.meta["val"].shape
    rank, times = len(shape), heads // int(shape[-3])
    if times == 1:
        return x
    sizes = [times if dim == rank - 2 else -1 for dim in range(rank + 1)]
    repeated = write(aten.expand.default, write(aten.unsqueeze.default, x, rank - 2), sizes)
    return write(aten.flatten.using_ints, repeated, rank - 3, rank - 2)


def _future(model: GraphModule, write: _Writer, query: Node, key: Node) -> Node:
    """[length, keys] true where a query must not look: a constant, unless sizes besides the batch may change."""
    sizes = [int(node.meta["val"].shape[-2]) for node in (query, key)]
    if not any(spec.dynamic.dims for spec in model.meta["djpq_inputs"]):
        value = torch.ones(sizes, dtype=torch.bool).triu(1)
        return write.attribute(add_constant(model, "future_{}_{}".format(*sizes), value))
    current = [write(aten.sym_size.int, node, node.meta["val"].dim() - 2) for node in (query, key)]
    return write(aten.to.dtype, write(aten.triu.default, write(aten.new_ones.default, query, current), 1), torch.bool)


def _mask(write: _Writer, scores: Node, mask: Node, dtype: torch.dtype) -> tuple[Node, Node | None]:
    """Masked scores, and what has to be hidden again behind softmax: queries without any key would see the mean.

    Scores become very small instead of minus infinity, where a query may be left without any key: softmax would return
    NaN, also to its gradient.
    """
    lowest = torch.finfo(dtype).min
    if mask.meta["val"].dtype is not torch.bool:
        if not _may_hide(mask):
            return write(aten.add.Tensor, scores, mask), None
        hidden = write(aten.eq.Scalar, mask, -math.inf)
        return write(aten.add.Tensor, scores, write(aten.clamp_min.default, mask, lowest)), hidden
    values = [_evaluate(mask, batch) for batch in (0, 1)]
    if all(value is not None and bool(value.all()) for value in values):
        return scores, None
    hidden = write(aten.logical_not.default, mask)
    if all(value is not None and bool(value.any(-1).all()) for value in values):
        return write(aten.masked_fill.Scalar, scores, hidden, -math.inf), None
    return write(aten.masked_fill.Scalar, scores, hidden, lowest), hidden


def _ancestors(node: Node) -> list[Node]:
    """``node`` and all whose values it depends on, in the order of the graph."""
    found, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            stack.extend(n for n in current.all_input_nodes if current.target not in SHAPE_ONLY or _is_size(n))
    return [other for other in node.graph.nodes if other in found]


def _may_hide(mask: Node) -> bool:
    """Whether a float mask may hold minus infinity: it comes from outside, or something on its way is infinite."""
    owner = mask.graph.owning_module
    assert owner is not None
    for node in _ancestors(mask):
        numbers = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, float)]
        if (node.op == "placeholder" and is_floating(node)) or -math.inf in numbers:
            return True
        if node.op == "get_attr" and _has_minus_infinity(_tensor(owner, str(node.target))):
            return True
    return False


def _has_minus_infinity(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(torch.isneginf(tensor).any())


def _tensor(model: GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), name)
    return tensor


def _is_size(node: Node) -> bool:
    return isinstance(node.meta["val"], int)


def _evaluate(node: Node, more: int) -> Tensor | None:
    """The value of a node that depends on sizes at most, all of which are ``more`` than in the example."""
    owner = node.graph.owning_module
    assert owner is not None
    values: dict[Node, Any] = {}
    for current in _ancestors(node):
        if current.target is aten.sym_size.int and current.all_input_nodes[0].op == "placeholder":
            if current.args[1] != 0 and any(spec.dynamic.dims for spec in owner.meta["djpq_inputs"]):
                return None  # a mask that hides nothing at two sizes may hide something at a third
            values[current] = current.meta["val"] + more
            continue
        if current.op == "get_attr":
            values[current] = _tensor(owner, str(current.target)).detach()
            continue
        unknown = [source for source in current.all_input_nodes if source not in values]
        if current.op != "call_function" or (unknown and current.target not in _NEW):
            return None
        known = values | {source: torch.empty(0, dtype=source.meta["val"].dtype) for source in unknown}
        args, kwargs = map_arg((current.args, current.kwargs), known.__getitem__)
        assert callable(current.target)
        try:
            values[current] = current.target(*args, **kwargs)
        except RuntimeError:  # not all sizes go together
            return None
    value = values[node]
    return value if isinstance(value, Tensor) else None
