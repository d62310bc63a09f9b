# SPDX-License-Identifier: Apache-2.0
"""Layers, MACs and bit-widths found in an OpenVINO IR file."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from djpq_nncf.cost._recount import (
    FLOAT_BITS,
    SHAPES_KEY,
    FileLayer,
    convolution_macs,
    damaged,
    range_bits,
    signed_bits,
)

_FORWARD = frozenset({"Convolution", "GroupConvolution"})
_TRANSPOSED = frozenset({"ConvolutionBackpropData", "GroupConvolutionBackpropData"})
# operations whose output holds nothing but values of their first input
_MOVEMENT = frozenset(
    {
        "AdaptiveMaxPool",
        "Broadcast",
        "Convert",
        "DepthToSpace",
        "Gather",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "ShuffleChannels",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "StridedSlice",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "VariadicSplit",
    }
)


def openvino_layers(path: Path) -> Iterator[FileLayer]:
    """Every convolution and matrix product of the file at ``path``, with batch size 1."""
    computed: set[str] = set()
    for node in _read(path).get_ordered_ops():
        kind = node.get_type_name()
        # what follows from constants and shapes alone is computed once for all samples
        sources = {value.get_node().get_name() for value in node.input_values()}
        if kind != "Parameter" and (kind == "ShapeOf" or computed.isdisjoint(sources)):
            continue
        computed.add(node.get_name())
        if kind not in _FORWARD | _TRANSPOSED | {"MatMul"}:
            continue
        shapes = [list(node.input(index).get_shape()) for index in (0, 1)]
        if kind in _FORWARD:
            # weight [out, in, kernel...] or [groups, out, in, kernel...]
            macs = convolution_macs(node.output(0).get_shape(), shapes[1][2 if kind == "GroupConvolution" else 1 :])
        elif kind in _TRANSPOSED:
            macs = convolution_macs(shapes[0], shapes[1][2 if kind.startswith("Group") else 1 :])
        else:
            inner = shapes[0][-2 if node.get_attributes()["transpose_a"] else -1]
            macs = prod(node.output(0).get_shape()) * inner
        activation, weight = (_bits(node.input_value(index)) for index in (0, 1))
        yield FileLayer(node.get_friendly_name(), kind, int(macs), weight, activation)


def _read(path: Path) -> ov.Model:
    try:
        model = ov.Core().read_model(path)
        single = {}
        noted = ["djpq_nncf", SHAPES_KEY]
        examples = json.loads(model.get_rt_info(noted).astype(str)) if model.has_rt_info(noted) else {}
        for port in model.inputs:
            shape = port.get_partial_shape()
            if port.get_any_name() in examples:
                shape = ov.PartialShape(examples[port.get_any_name()])
                shape[0] = port.get_partial_shape()[0]
            if len(shape) and shape[0].is_dynamic:
                shape[0] = 1
            single[port] = shape
        model.reshape(single)
    except RuntimeError as error:
        raise damaged(path, error) from error
    return model


def _bits(value: Any) -> int:
    """Bits of the grid that ``value`` lies on; 32 for float."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "FakeQuantize":
        return _fake_quantize_bits(node)
    if kind == "Multiply":
        codes = _stored_codes(node)
        return signed_bits(codes) if codes is not None else FLOAT_BITS
    if kind == "Concat":
        return max(_bits(source.get_source_output()) for source in node.inputs())
    return _bits(node.input_value(0)) if kind in _MOVEMENT else FLOAT_BITS


def _stored_codes(multiply: Any) -> np.ndarray | None:
    """Integers of a compressed weight: Constant, Convert, perhaps Subtract, Multiply."""
    node, zero_point = multiply.input_value(0).get_node(), 0
    if node.get_type_name() == "Subtract":
        zero_point = _constant(node.input_value(1).get_node())
        node = node.input_value(0).get_node()
    codes = _constant(node) if node.get_type_name() == "Convert" else None
    return None if codes is None or zero_point is None else codes - zero_point


def _constant(node: Any) -> Any:
    """Integers of a constant, in front of which there may be a Convert."""
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return np.rint(node.get_data(dtype=np.float64)).astype(np.int64)  # unpacks narrow integers, ``data`` does not


def _fake_quantize_bits(node: Any) -> int:
    low, high = (np.asarray(node.input_value(index).get_node().data, np.float64) for index in (3, 4))
    step = (high - low) / (node.get_attributes()["levels"] - 1)
    source = node.input_value(0).get_node()
    if source.get_type_name() == "Constant":
        return signed_bits(np.rint(source.data / step))
    if source.get_type_name() == "Clamp":
        bounds = source.get_attributes()
        low, high = np.maximum(low, bounds["min"]), np.minimum(high, bounds["max"])
    return range_bits(int(np.rint(low / step).min()), int(np.rint(high / step).max()))
