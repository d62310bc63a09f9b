# SPDX-License-Identifier: Apache-2.0
"""Folds BatchNorm into the convolution or linear layer before it; quantized weights keep their codes."""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.nn._frozen import FrozenWeightQuantizer

_aten = torch.ops.aten
CONVOLUTIONS = frozenset(
    {
        _aten.conv1d.default,
        _aten.conv2d.default,
        _aten.conv3d.default,
        _aten.conv1d.padding,
        _aten.conv2d.padding,
        _aten.conv3d.padding,
    }
)


def fold_batchnorm(model: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy of ``model`` whose BatchNorm layers are part of the layers before them.

    A BatchNorm folds where it is the only user of a conv1d/2d/3d or of a linear layer. Where the weight
    passes through a ``FrozenWeightQuantizer`` of step ``d``, its codes stay (with the sign of the
    BatchNorm scale) and the step becomes ``d * |gamma / sqrt(var + eps)|``, one per output channel; the
    weight itself is stored on that grid. The result equals the model in eval mode up to float rounding.
    """
    folded = copy.deepcopy(model).eval()
    for node in list(folded.graph.nodes):
        if node.op == "call_module":
            batchnorm = folded.get_submodule(node.target)
            if isinstance(batchnorm, _BatchNorm) and is_foldable(folded, node, batchnorm):
                _fold(folded, node, batchnorm)
    folded.graph.eliminate_dead_code()
    folded.delete_all_unused_submodules()
    _delete_unused_tensors(folded)
    folded.recompile()
    return folded


def get_tensor(model: nn.Module, path: str) -> Tensor:
    """The parameter, buffer or constant at a dotted ``path``."""
    tensor: Tensor = operator.attrgetter(path)(model)
    return tensor


def is_foldable(model: fx.GraphModule, node: fx.Node, batchnorm: _BatchNorm) -> bool:
    """Whether the BatchNorm can become part of the layer before it."""
    layer = node.args[0]
    if batchnorm.running_mean is None or not isinstance(layer, fx.Node) or len(layer.users) != 1:
        return False
    if layer.target == _aten.linear.default:
        # BatchNorm1d normalises dimension 1, which is the features' one in [N, C] only
        value = layer.meta.get("val")
        if value is None or value.dim() != 2:
            return False
    elif layer.target not in CONVOLUTIONS:
        return False
    bias = argument(layer, 2)
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return False
    return weight_source(model, layer) is not None


def weight_source(model: fx.GraphModule, layer: fx.Node) -> tuple[fx.Node, FrozenWeightQuantizer | None] | None:
    """The get_attr node of the layer's weight and the quantizer it passes through, if that is all there is."""
    weight = argument(layer, 1)
    quantizer = None
    if isinstance(weight, fx.Node) and weight.op == "call_module":
        module = model.get_submodule(str(weight.target))
        if not isinstance(module, FrozenWeightQuantizer):
            return None
        quantizer, weight = module, weight.args[0]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return None
    return weight, quantizer


def argument(node: fx.Node, position: int) -> Any:
    """Argument ``position`` of a call to aten.conv or aten.linear (input, weight, bias)."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(("input", "weight", "bias")[position])


def _set_argument(node: fx.Node, position: int, value: fx.Node) -> None:
    arguments = list(node.args)
    if len(arguments) > position:
        arguments[position] = value
        node.args = tuple(arguments)
    elif len(arguments) == position and ("input", "weight", "bias")[position] not in node.kwargs:
        node.args = (*arguments, value)
    else:
        node.kwargs = {**node.kwargs, ("input", "weight", "bias")[position]: value}


def _fold(model: fx.GraphModule, node: fx.Node, batchnorm: _BatchNorm) -> None:
    layer = node.args[0]
    assert isinstance(layer, fx.Node)
    source = weight_source(model, layer)
    assert source is not None
    weight_node, quantizer = source
    weight_path = str(weight_node.target)
    scale, shift = affine(batchnorm)
    bias_node = argument(layer, 2)
    bias = shift if bias_node is None else shift + scale * _double(get_tensor(model, bias_node.target))
    weight = get_tensor(model, weight_path).detach()
    if quantizer is None:
        new_weight, new_quantizer = _double(weight) * _per_channel(scale, weight), None
    else:
        new_weight, new_quantizer = _scale_grid(weight, quantizer, scale)

    graph = model.graph
    with graph.inserting_before(layer):
        shared = len(argument(layer, 1).users) > 1  # the other layer reads what is there now
        path = _free_path(model, weight_path, None if shared else weight_node)
        _set_tensor(model, path, new_weight.to(weight.dtype))
        new_weight_node = _get_attr(graph, path, weight_node)
        if new_quantizer is not None:
            call = argument(layer, 1)
            quantizer_path = _free_path(model, call.target, call)
            model.add_submodule(quantizer_path, new_quantizer)
            quantized = graph.call_module(quantizer_path, (new_weight_node,))
            quantized.meta = dict(call.meta)
            new_weight_node = quantized
        bias_path = _free_path(model, f"{path.removesuffix('.weight')}.bias", bias_node)
        _set_tensor(model, bias_path, bias.to(weight.dtype))
        new_bias_node = _get_attr(graph, bias_path, None)
    _set_argument(layer, 1, new_weight_node)
    _set_argument(layer, 2, new_bias_node)
    node.replace_all_uses_with(layer)
    graph.erase_node(node)


def affine(batchnorm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift, per channel and in float64, that the BatchNorm applies in eval mode."""
    assert batchnorm.running_mean is not None and batchnorm.running_var is not None
    scale = torch.rsqrt(_double(batchnorm.running_var) + batchnorm.eps)
    if batchnorm.weight is not None:
        scale = scale * _double(batchnorm.weight)
    shift = -_double(batchnorm.running_mean) * scale
    if batchnorm.bias is not None:
        shift = shift + _double(batchnorm.bias)
    return scale, shift


def _scale_grid(
    weight: Tensor, quantizer: FrozenWeightQuantizer, scale: Tensor
) -> tuple[Tensor, FrozenWeightQuantizer]:
    codes = quantizer.codes(weight) * _per_channel(torch.sign(scale), weight).to(weight.dtype)
    step = (_double(quantizer.step) * scale.abs()).to(weight.dtype)
    vanishing = step < torch.finfo(weight.dtype).tiny
    step = torch.where(vanishing, torch.ones_like(step), step)
    codes = torch.where(_per_channel(vanishing, weight), torch.zeros_like(codes), codes)
    return codes * _per_channel(step, weight), FrozenWeightQuantizer(step, quantizer.bits)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def _per_channel(values: Tensor, weight: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (weight.dim() - 1))


def _get_attr(graph: fx.Graph, path: str, like: fx.Node | None) -> fx.Node:
    node = graph.create_node("get_attr", path)
    node.meta = dict(like.meta) if like is not None else {}
    return node


def _free_path(model: fx.GraphModule, path: str, replaced: fx.Node | None) -> str:
    """``path`` itself if the replaced node is its only user, else a path nobody uses yet."""
    references = [node for node in model.graph.nodes if node.op in {"get_attr", "call_module"}]
    others = {str(node.target) for node in references if node is not replaced}
    if replaced is not None and (len(replaced.users) > 1 or path != replaced.target):
        others.add(str(replaced.target))
    candidate, number = path, 0
    while candidate in others:
        number += 1
        owner, _, name = path.rpartition(".")
        candidate = f"{owner}_{number}.{name}" if owner else f"{name}_{number}"
    return candidate


def _set_tensor(model: nn.Module, path: str, value: Tensor) -> None:
    *owners, name = path.split(".")
    owner = model
    for part in owners:
        child = getattr(owner, part, None)
        if not isinstance(child, nn.Module):
            child = nn.Module()
            setattr(owner, part, child)
        owner = child
    if hasattr(owner, name):
        delattr(owner, name)
    owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _delete_unused_tensors(model: fx.GraphModule) -> None:
    """Drops what only folded layers used; ``delete_all_unused_submodules`` looks at modules alone."""
    used = {str(node.target) for node in model.graph.nodes if node.op in {"get_attr", "call_module"}}
    for path in [name for name, _ in (*model.named_parameters(), *model.named_buffers())]:
        owner, _, name = path.rpartition(".")
        if path not in used and owner not in used:
            delattr(model.get_submodule(owner), name)
