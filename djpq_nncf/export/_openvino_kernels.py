# SPDX-License-Identifier: Apache-2.0
"""Rewrites a converted model where the CPU plugin would compute something else, or in float without need."""

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset1 as opset1
import openvino.opset13 as ops
from numpy.typing import ArrayLike

_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
# oneDNN's kernels for AVX2 copy so many channels at once
_VECTOR = 16
# with which the plugin fuses no sum
_SEPARATE = frozenset({"AvgPool", "Interpolate", "MaxPool"})


def fake_quantize(x: Any, step: ArrayLike, codes: tuple[int, int]) -> ov.Node:
    """FakeQuantize with one level for each code from the first to the last."""
    lowest, highest = codes
    low = np.asarray(lowest * np.asarray(step), dtype=np.float32)
    high = np.asarray(highest * np.asarray(step), dtype=np.float32)
    node: ov.Node = ops.fake_quantize(x, low, high, low, high, highest - lowest + 1)
    return node


def round_before_sums(model: ov.Model) -> None:
    """Makes quantizers which only feed additions round.

    The CPU plugin fuses convolution, FakeQuantize, the addition of the other branch and the next
    FakeQuantize into one kernel, and leaves rounding to the conversion of the result: the first
    quantizer then only clamps. Written out, it is float arithmetic which does round, still inside the kernel, and
    the layers on either side stay in INT8.

    Where a convolution is added to another one, or to what has a kernel of its own, the other branch can stay a
    FakeQuantize: the plugin fuses the sum with the convolution whose result is in float.
    """
    staying = {name for node in model.get_ops() if node.get_type_name() == "Add" for name in _stays(node)}
    for node in model.get_ops():
        if not _only_feeds_sums(node) or node.get_name() in staying:
            continue
        low, high = (node.input_value(index).get_node().data.item() for index in (3, 4))
        step = (high - low) / (node.get_attributes()["levels"] - 1)
        codes = ops.round(ops.multiply(node.input_value(0), np.float32(1 / step)).output(0), "half_to_even").output(0)
        clamped = ops.clamp(codes, float(round(low / step)), float(round(high / step))).output(0)
        written_out = ops.multiply(clamped, np.float32(step))
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(written_out.output(0))


def _only_feeds_sums(node: ov.Node) -> bool:
    if node.get_type_name() != "FakeQuantize" or node.input_value(0).get_node().get_type_name() == "Constant":
        return False
    return all(target.get_node().get_type_name() == "Add" for target in node.output(0).get_target_inputs())


def _stays(addition: ov.Node) -> list[str]:
    """The name of the quantizer, of the two that feed this sum and nothing else, that need not be in float."""
    quantizers = [value.get_node() for value in addition.input_values()]
    if not all(_only_feeds_sums(node) and len(node.output(0).get_target_inputs()) == 1 for node in quantizers):
        return []
    kernels = [_kernel(node) for node in quantizers]
    for stays, rounds in ((0, 1), (1, 0)):
        if kernels[stays] in _CONVOLUTIONS | _SEPARATE and kernels[rounds] in _CONVOLUTIONS:
            return [quantizers[stays].get_name()]
    return []


def _kernel(node: ov.Node) -> str:
    """What the plugin computes a quantizer with: the operation behind which there are only constants and itself."""
    while node.get_type_name() not in _CONVOLUTIONS | _SEPARATE:
        computed = [value for value in node.input_values() if value.get_node().get_type_name() != "Constant"]
        if len(computed) != 1 or len(computed[0].get_target_inputs()) != 1:
            break
        node = computed[0].get_node()
    return str(node.get_type_name())


def normalize_numbers(model: ov.Model) -> None:
    """Puts a minimum that changes nothing in front of normalization.

    The CPU plugin carries the scale of codes behind it, where it drops out, and so adds epsilon to the variance of the
    codes. It carries no scale through a minimum. Normalization over the last of several inner dimensions needs none:
    the plugin has no kernel for it, and takes the mean off in front of the normalization.
    """
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind == "GroupNormalization" or (kind == "MVN" and _has_kernel(node)):
            bounded = ops.minimum(node.input_value(0), np.finfo(np.float32).max)
            node.input(0).replace_source_output(bounded.output(0))


def _has_kernel(node: ov.Node) -> bool:
    """Over all dimensions behind the first or the second one, as far as is known."""
    rank = node.input_value(0).get_partial_shape().rank
    axes = node.input_value(1).get_node()
    if rank.is_dynamic or axes.get_type_name() != "Constant":
        return True
    normalized = sorted({int(axis) % rank.get_length() for axis in axes.data.flatten()})
    return normalized in (list(range(1, rank.get_length())), list(range(2, rank.get_length())))


def pad_pools(model: ov.Model) -> None:
    """Writes the windows of max pooling that reach over the edge as padding, where the size is known.

    The CPU plugin pools in INT8 only what rounds the number of windows down and returns no indices.
    """
    for node in model.get_ops():
        if node.get_type_name() != "MaxPool" or len(node.outputs()) < 2 or node.output(1).get_target_inputs():
            continue
        attributes = node.get_attributes()
        shapes = [list(node.input_value(0).get_partial_shape())[2:], list(node.output(0).get_partial_shape())[2:]]
        known = all(size.is_static for shape in shapes for size in shape)
        if not known or any(dilation != 1 for dilation in attributes["dilations"]):
            continue
        sizes, windows = ([size.get_length() for size in shape] for shape in shapes)
        strides, begin, kernel = (list(attributes[name]) for name in ("strides", "pads_begin", "kernel"))
        end = [
            max(0, (count - 1) * stride + width - size - before)
            for count, stride, width, size, before in zip(windows, strides, kernel, sizes, begin, strict=True)
        ]
        pooled = opset1.max_pool(node.input_value(0), strides, begin, end, kernel, "floor", "explicit")
        pooled.set_friendly_name(node.get_friendly_name())
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(pooled.output(0))


def separate_strides(model: ov.Model) -> None:
    """Takes the pixels that a strided 1x1 convolution in INT8 reads with a slice, in front of one without strides.

    On AVX2 the CPU plugin has each thread copy these pixels to memory of its own, in whole vectors of channels: those
    of the last pixel reach into the memory of the next thread, and now and then change its first pixel. It does so
    where sizes are multiples of the strides and there are one or two of them.
    """
    for node in model.get_ops():
        if node.get_type_name() != "Convolution":
            continue
        weight = node.input_value(1)
        if weight.get_node().get_type_name() == "Constant" or weight.get_partial_shape().is_dynamic:
            continue  # in float, or computed
        attributes, (_, channels, *kernel) = node.get_attributes(), weight.get_shape()
        strides, sizes = list(attributes["strides"]), list(node.input_value(0).get_partial_shape())[2:]
        padded = any(attributes["pads_begin"]) or any(attributes["pads_end"])
        divides = all(
            size.is_dynamic or size.get_length() % stride == 0 for size, stride in zip(sizes, strides, strict=True)
        )
        copied = max(strides) > 1 and set(kernel) == {1} and len(kernel) < 3 and divides and not padded
        if not copied or channels % _VECTOR == 0:
            continue
        start, stop = np.zeros_like(strides), np.full_like(strides, np.iinfo(np.int64).max)
        axes = np.arange(2, 2 + len(strides))
        pixels = ops.slice(node.input_value(0), start, stop, np.array(strides), axes)
        node.input(0).replace_source_output(pixels.output(0))
        node.set_attribute("strides", [1] * len(strides))
