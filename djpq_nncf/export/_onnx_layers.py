# SPDX-License-Identifier: Apache-2.0
"""Writes each quantized conv and linear in the exact form that ONNX Runtime executes in INT8."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from djpq_nncf.export._onnx_nodes import (
    add_constant,
    constant_value,
    consumers,
    insert_before,
    is_constant,
    is_packed,
    replace,
)

_INT32_LIMIT = 2**30


def rewrite_layers(graph: ir.Graph) -> None:
    """Conv: QDQ where a quantizer follows (QLinearConv), else ConvInteger. Linear: MatMulInteger.

    With a packed weight there is no INT8 kernel, and nothing changes.
    """
    for node in list(graph):
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        x, weight = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
        if x is None or weight is None or is_packed(weight.inputs[0]):
            continue
        if node.op_type == "Conv":
            _rewrite_convolution(graph, node, x, weight)
        elif is_constant(weight.inputs[0]):
            _rewrite_linear(graph, node, x, weight)


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _rewrite_linear(graph: ir.Graph, node: ir.Node, x: ir.Node, weight: ir.Node) -> None:
    """MatMulInteger takes the bias in float afterwards; a QDQ Gemm wants it rounded to INT32."""
    attributes = node.attributes
    if node.op_type == "Gemm":
        scales = [attributes[name].as_float() for name in ("alpha", "beta") if name in attributes]
        if any(scale != 1 for scale in scales) or ("transA" in attributes and attributes["transA"].as_int()):
            return
    assert node.name is not None
    codes = constant_value(weight.inputs[0])
    if "transB" in attributes and attributes["transB"].as_int():
        codes = np.ascontiguousarray(codes.T)
    matrix = add_constant(graph, f"{node.name}.weight_matrix", codes)
    total = insert_before(node, "MatMulInteger", [x.inputs[0], matrix, x.inputs[2]], name=node.name)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    replace(node.outputs[0], _to_float(graph, node, total, _output_scale(x, weight), bias))


def _rewrite_convolution(graph: ir.Graph, node: ir.Node, x: ir.Node, weight: ir.Node) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    scale = _output_scale(x, weight)
    users = consumers(node.outputs[0])
    fuses = len(users) == 1 and users[0].op_type == "QuantizeLinear" and not node.outputs[0].is_graph_output()
    if fuses and bias is None:
        return
    if fuses and bias is not None:
        codes = np.rint(constant_value(bias).astype(np.float64) / scale)
        # a channel that BatchNorm all but switched off has a bias which INT32 cannot hold at this step
        if np.abs(codes).max() < _INT32_LIMIT:
            node.replace_input_with(2, _integer_bias(graph, node, codes, scale))
            return
    _to_integer_convolution(graph, node, x, weight, scale, bias)


def _integer_bias(graph: ir.Graph, node: ir.Node, codes: NDArray[np.float64], scale: NDArray[np.float32]) -> ir.Value:
    inputs = [
        add_constant(graph, f"{node.name}.bias_codes", codes.astype(np.int32)),
        add_constant(graph, f"{node.name}.bias_scale", scale.astype(np.float32)),
        add_constant(graph, f"{node.name}.bias_zero_point", np.zeros(scale.shape, np.int32)),
    ]
    attributes = {"axis": 0} if scale.ndim else {}
    return insert_before(node, "DequantizeLinear", inputs, attributes, name=f"{node.name}.bias_dequantize")


def _to_integer_convolution(
    graph: ir.Graph,
    node: ir.Node,
    x: ir.Node,
    weight: ir.Node,
    scale: NDArray[np.float32],
    bias: ir.Value | None,
) -> None:
    assert node.name is not None
    inputs = [x.inputs[0], weight.inputs[0], x.inputs[2]]
    total = insert_before(node, "ConvInteger", inputs, dict(node.attributes), name=node.name)
    shape = (-1, *(1,) * (constant_value(weight.inputs[0]).ndim - 2))
    if bias is not None:
        bias = add_constant(graph, f"{node.name}.bias_term", constant_value(bias).reshape(shape))
    scale = scale.reshape(shape) if scale.ndim else scale
    replace(node.outputs[0], _to_float(graph, node, total, scale, bias))


def _to_float(
    graph: ir.Graph, node: ir.Node, total: ir.Value, scale: NDArray[np.float32], bias: ir.Value | None
) -> ir.Value:
    result = insert_before(node, "Cast", [total], {"to": ir.DataType.FLOAT}, name=f"{node.name}.to_float")
    factor = add_constant(graph, f"{node.name}.output_scale", scale)
    result = insert_before(node, "Mul", [result, factor], name=f"{node.name}.rescale")
    if bias is None:
        return result
    return insert_before(node, "Add", [result, bias], name=f"{node.name}.bias_add")


def _output_scale(x: ir.Node, weight: ir.Node) -> NDArray[np.float32]:
    scale: NDArray[np.float32] = np.asarray(constant_value(x.inputs[1]) * constant_value(weight.inputs[1]))
    return scale
