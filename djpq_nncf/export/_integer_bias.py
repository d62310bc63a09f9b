# SPDX-License-Identifier: Apache-2.0
"""Biases as INT8 kernels keep them: whole multiples of the step of the sums that they are added to."""

from collections import Counter

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.cost._dataflow import moved_values
from djpq_nncf.export._fold import CONVOLUTIONS, affine, argument, get_tensor, is_foldable, weight_source
from djpq_nncf.nn._frozen import FrozenActivationQuantizer


def container_factor(bits: int) -> int:
    """Weights below 7 bits are stored as multiples of this, with a step as much smaller.

    A bias is rounded to a multiple of input step times weight step; with the codes of few bits in the
    middle of INT8 that would be coarse. Codes up to 63 still cannot saturate a CPU without VNNI, and a
    power of two leaves the step exact.
    """
    return int(2 ** max(0, 7 - bits))


@torch.no_grad()
def round_biases(model: fx.GraphModule) -> None:
    """Round the bias of every quantized convolution to a multiple of input step times weight step, in place.

    ONNX Runtime holds biases in INT32 and so rounds them itself. Rounded here, the model in PyTorch and the files for
    all runtimes hold the same numbers. With a BatchNorm behind the convolution, that one's shift takes the difference.
    """
    uses: Counter[str] = Counter()
    for node in model.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            uses[str(node.target)] += len(node.users) if node.op == "get_attr" else 1
    for layer in model.graph.nodes:
        if layer.target not in CONVOLUTIONS:
            continue
        step = _step_of_sums(model, layer)
        if step is not None:
            _round_bias(model, layer, step, uses)


def _step_of_sums(model: fx.GraphModule, layer: fx.Node) -> Tensor | None:
    """Input step times weight step, a scalar or [output channels]; None unless both are quantized, each in one way."""
    source = weight_source(model, layer)
    inputs = _quantizers(model, argument(layer, 0))
    if source is None or source[1] is None or inputs is None:
        return None
    steps = {float(quantizer.step) for quantizer in inputs}
    if len(steps) != 1:
        return None
    return steps.pop() * source[1].step.double() / container_factor(source[1].bits)


def _quantizers(model: fx.GraphModule, value: fx.Node) -> list[FrozenActivationQuantizer] | None:
    """The quantizers that a value comes from without being computed with, through poolings and concatenations."""
    if value.op == "call_module":
        module = model.get_submodule(str(value.target))
        if isinstance(module, FrozenActivationQuantizer):
            return [module]
    found: list[FrozenActivationQuantizer] = []
    for source in moved_values(model, value):
        behind = _quantizers(model, source)
        if behind is None:
            return None
        found += behind
    return found or None


def _round_bias(model: fx.GraphModule, layer: fx.Node, step: Tensor, uses: Counter[str]) -> None:
    bias = argument(layer, 2)
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return
    own = None if bias is None else get_tensor(model, str(bias.target))
    user = next(iter(layer.users), None)
    batchnorm = model.get_submodule(str(user.target)) if user is not None and user.op == "call_module" else None
    if user is not None and isinstance(batchnorm, _BatchNorm) and is_foldable(model, user, batchnorm):
        if uses[str(user.target)] == 1:
            scale, shift = affine(batchnorm)
            folded = shift if own is None else shift + scale * own.double()
            _shift(batchnorm, _rounded(folded, step * scale.abs()) - folded, scale)
    elif own is not None and bias is not None and uses[str(bias.target)] == 1:
        own.copy_(_rounded(own.double(), step))


def _rounded(bias: Tensor, step: Tensor) -> Tensor:
    vanishing = step < torch.finfo(torch.float32).tiny
    return torch.where(vanishing, bias, (bias / step).round() * step)


def _shift(batchnorm: _BatchNorm, by: Tensor, scale: Tensor) -> None:
    assert batchnorm.running_mean is not None
    if batchnorm.affine:
        batchnorm.bias.copy_(batchnorm.bias.double() + by)
    else:
        batchnorm.running_mean.copy_(batchnorm.running_mean.double() - by / scale)
