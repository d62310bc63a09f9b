# SPDX-License-Identifier: Apache-2.0
"""Repeats a quantizer in front of a layer which sees its grid only through pooling, reshaping or concat."""

import operator

import torch
from torch import fx
from torch.nn.modules.dropout import _DropoutNd

from djpq_nncf.nn._frozen import FrozenActivationQuantizer

_aten = torch.ops.aten
_LAYERS = frozenset({"conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul", "bmm"})
_GRID_PRESERVING = frozenset(
    {
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "adaptive_max_pool2d",
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "slice",
        "select",
        "chunk",
        "split",
        "split_with_sizes",
        "contiguous",
        "clone",
        "channel_shuffle",
        "pixel_shuffle",
        "expand",
        "relu",
    }
)


def repeat_quantizers(model: fx.GraphModule) -> None:
    """Puts quantizers, in place, where a layer's input lies on a grid but does not come from a quantizer.

    Runtimes fuse a layer only with the quantizer right in front of it. Rounding values that are on the
    grid already changes nothing.
    """
    graph = model.graph
    for node in list(graph.nodes):
        if _operator(node) not in _LAYERS:
            continue
        count = 2 if _operator(node) in {"matmul", "bmm"} else 1
        for source in node.args[:count]:
            if not isinstance(source, fx.Node) or _quantizer(model, source) is not None:
                continue
            target = _grid_source(model, source)
            if target is not None:
                with graph.inserting_before(node):
                    repeated = graph.call_module(target, (source,))
                repeated.meta = dict(source.meta)
                node.replace_input_with(source, repeated)
    model.recompile()


def _grid_source(model: fx.GraphModule, node: fx.Node) -> str | None:
    """The quantizer whose grid holds every value of ``node``, if there is one."""
    quantizer = _quantizer(model, node)
    if quantizer is not None:
        return str(node.target)
    if node.op == "call_function" and node.target is _aten.cat.default:
        sources = list(node.args[0])  # type: ignore[arg-type]
    elif _operator(node) in _GRID_PRESERVING or node.target is operator.getitem or _is_dropout(model, node):
        sources = [node.args[0]]
    else:
        return None
    targets = [_grid_source(model, source) if isinstance(source, fx.Node) else None for source in sources]
    if not targets or targets[0] is None or any(target is None for target in targets):
        return None
    grids = {_grid(model, str(target)) for target in targets}
    return targets[0] if len(grids) == 1 else None


def _grid(model: fx.GraphModule, target: str) -> tuple[float, int, int]:
    quantizer = model.get_submodule(target)
    assert isinstance(quantizer, FrozenActivationQuantizer)
    return quantizer.step.item(), quantizer.lowest, quantizer.highest


def _quantizer(model: fx.GraphModule, node: fx.Node) -> FrozenActivationQuantizer | None:
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    return module if isinstance(module, FrozenActivationQuantizer) else None


def _is_dropout(model: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), _DropoutNd)


def _operator(node: fx.Node) -> str:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")
