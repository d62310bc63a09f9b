# SPDX-License-Identifier: Apache-2.0
"""Layers, MACs and bit-widths found in an ONNX file."""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnxscript import optimizer

from djpq_nncf.cost._recount import (
    FLOAT_BITS,
    SHAPES_KEY,
    FileLayer,
    convolution_macs,
    damaged,
    range_bits,
    signed_bits,
)
from djpq_nncf.errors import ExportError

_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "ConvTranspose"})
_PRODUCTS = frozenset({"MatMul", "MatMulInteger", "Gemm"})
# operations whose output holds nothing but values of their first input
_MOVEMENT = frozenset(
    {
        "DepthToSpace",
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def onnx_layers(path: Path) -> Iterator[FileLayer]:
    """Every convolution and matrix product of the file at ``path``, with batch size 1."""
    model = _read(path)
    return _Graph(model, _shapes(model, path), path).layers()


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        noted = {entry.key: entry.value for entry in model.metadata_props}
        examples = json.loads(noted.get(f"djpq_nncf.{SHAPES_KEY}", "{}"))
        for port in model.graph.input:
            dimensions = port.type.tensor_type.shape.dim
            for dimension, size in zip(list(dimensions)[1:], examples.get(port.name, [])[1:], strict=False):
                dimension.dim_value = size
            if dimensions and not dimensions[0].HasField("dim_value"):
                dimensions[0].dim_value = 1
        # shapes which the exporter noted hold for a symbolic batch
        del model.graph.value_info[:]
        for port in model.graph.output:
            port.type.tensor_type.ClearField("shape")
        return model
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise damaged(path, error) from error


def _shapes(model: onnx.ModelProto, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors, as far as they follow from those of the inputs."""
    try:
        # shape inference alone does not see through arithmetic on sizes, such as in front of attention
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        for node in copied.graph.node:
            if node.op_type == "GroupNormalization":  # keeps the shape, which inference does not know
                node.op_type = "Identity"
                del node.input[1:], node.attribute[:]
        folded = ir.from_proto(copied)
        optimizer.fold_constants(folded, onnx_shape_inference=True, should_fold=_may_be_folded)
        graph = onnx.shape_inference.infer_shapes(ir.to_proto(folded), strict_mode=True, data_prop=True).graph
    except Exception as error:  # protobuf's, onnx's and onnxscript's errors share no base class
        raise damaged(path, error) from error
    dimensions = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name: tuple(tensor.dims) for tensor in (*graph.initializer, *model.graph.initializer)}
    return constants | {
        name: tuple(dim.dim_value for dim in dims)
        for name, dims in dimensions.items()
        if all(dim.HasField("dim_value") for dim in dims)
    }


def _may_be_folded(node: ir.Node) -> bool:
    """Weights are looked up under the name they have in the file."""
    return node.op_type != "DequantizeLinear"


class _Graph:
    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
        graph = model.graph
        self._shapes, self._path = shapes, path
        self._nodes = list(graph.node)
        self._inputs = list(graph.input)
        self._producers = {name: node for node in graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t

    def layers(self) -> Iterator[FileLayer]:
        computed = {port.name for port in self._inputs}
        for node in self._nodes:
            # what follows from constants and shapes alone is computed once for all samples
            if node.op_type == "Shape" or computed.isdisjoint(node.input):
                continue
            computed.update(node.output)
            if node.op_type in _CONVOLUTIONS | _PRODUCTS:
                activation, weight = (self._bits(node.input[index], node, index) for index in (0, 1))
                yield FileLayer(node.name, node.op_type, self._macs(node), weight, activation)

    def _macs(self, node: onnx.NodeProto) -> int:
        names = (node.input[0], node.input[1], node.output[0])
        for name in names:
            if name not in self._shapes:
                raise ExportError(
                    f"{self._path}: the shape of '{name}', at the node '{node.name}' ({node.op_type}), does not follow "
                    "from the shapes of the inputs, so its MACs cannot be counted. Export to .xml instead."
                )
        first, second, output = (self._shapes[name] for name in names)
        if node.op_type == "ConvTranspose":
            return convolution_macs(first, second[1:])
        if node.op_type in _CONVOLUTIONS:
            return convolution_macs(output, second[1:])
        return prod(output) * first[-2 if _attributes(node).get("transA", 0) else -1]

    def _bits(self, name: str, reader: onnx.NodeProto, index: int) -> int:
        """Bits of the grid that the tensor ``name`` lies on; 32 for float."""
        if name in self._constants:
            codes = self._constant(name)
            if codes.dtype.kind not in "iu":
                return FLOAT_BITS
            return signed_bits(codes.astype(np.int64) - self._zero_point(reader, index))
        node = self._producers.get(name)
        if node is None:
            return FLOAT_BITS
        if node.op_type == "Clip":
            return self._clip_bits(node)
        if node.op_type == "QuantizeLinear":
            limits = np.iinfo(self._constant(node.input[2]).dtype if len(node.input) > 2 else np.uint8)
            zero = int(self._zero_point(node, 0))
            return range_bits(int(limits.min) - zero, int(limits.max) - zero)
        if node.op_type == "Concat":
            return max(self._bits(source, node, position) for position, source in enumerate(node.input))
        return self._bits(node.input[0], node, 0) if node.op_type in _MOVEMENT else FLOAT_BITS

    def _clip_bits(self, node: onnx.NodeProto) -> int:
        """A Clip between QuantizeLinear and DequantizeLinear narrows the range of codes."""
        source = self._producers.get(node.input[0])
        if source is None or source.op_type != "QuantizeLinear":
            return FLOAT_BITS
        zero = int(self._zero_point(source, 0))
        low, high = (int(self._constant(name)) for name in node.input[1:3])
        return range_bits(low - zero, high - zero)

    def _zero_point(self, node: onnx.NodeProto, index: int) -> Any:
        """The zero point of operand ``index`` of an integer operator or of Q/DQ, as int64."""
        position = 2 + index if node.op_type in {"ConvInteger", "MatMulInteger"} else 2
        if len(node.input) <= position or not node.input[position]:
            return np.int64(0)
        zero = self._constant(node.input[position]).astype(np.int64)
        return zero if zero.ndim == 0 else int(zero.flat[0]) if np.all(zero == zero.flat[0]) else zero

    def _constant(self, name: str) -> np.ndarray:
        value = numpy_helper.to_array(self._constants[name])
        return value.astype(np.int8) if value.dtype.name == "int4" else value  # which numpy knows no kind of


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
