# SPDX-License-Identifier: Apache-2.0
"""Turns the marker nodes of an ONNX graph into the integer forms that ONNX Runtime executes."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from djpq_nncf.export._integer_bias import container_factor
from djpq_nncf.export._markers import NAMESPACE
from djpq_nncf.export._onnx_layers import rewrite_layers
from djpq_nncf.export._onnx_nodes import (
    add_constant,
    constant_value,
    consumers,
    insert_before,
    remove_unused,
    replace,
)

QUANTIZE_WEIGHT = "QuantizeWeight"
QUANTIZE_ACTIVATION = "QuantizeActivation"
NAME_WEIGHT = "NameWeight"
MULTIPLY = "Multiply"


def rewrite(model: ir.Model, layer_names: Sequence[str], *, packed_weights: bool) -> None:
    """Writes weights as integer initializers, activations as Q/Clip/DQ and layers in the form that fuses.

    ``packed_weights``: INT4 for weights of up to 4 bits, except in embeddings; else INT8. There is an INT2, but ONNX
    Runtime 1.32 makes a kernel that is none of a convolution with it.
    """
    graph = model.graph
    _absorb_transposes(graph)
    for node in _markers(graph, MULTIPLY):
        name = layer_names[node.attributes["layer"].as_int()]
        replace(node.outputs[0], insert_before(node, "MatMul", list(node.inputs), name=name))
    for node in _markers(graph, NAME_WEIGHT):
        _name(node, layer_names)
    for node in _markers(graph, QUANTIZE_WEIGHT):
        _quantize_weight(graph, node, layer_names, packed_weights=packed_weights)
    _look_up_codes(graph)
    _merge_equal(graph)
    _absorb_clamps(graph)
    for node in _markers(graph, QUANTIZE_ACTIVATION):
        _quantize_activation(graph, node)
    rewrite_layers(graph)
    remove_unused(graph)
    for node in graph:
        node.metadata_props.clear()  # the exporter notes lines of the model's source code, and where they are
    model.opset_imports.pop(NAMESPACE, None)


_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def _markers(graph: ir.Graph, operator: str) -> list[ir.Node]:
    return [node for node in graph if node.domain == NAMESPACE and node.op_type == operator]


def _absorb_transposes(graph: ir.Graph) -> None:
    """MatMul takes the transposed weight: the stored one is transposed, the node goes."""
    for marker in (*_markers(graph, QUANTIZE_WEIGHT), *_markers(graph, NAME_WEIGHT)):
        users = consumers(marker.outputs[0])
        if not users or any(user.op_type != "Transpose" for user in users):
            continue
        permutations = {tuple(user.attributes["perm"].as_ints()) for user in users}
        if len(permutations) > 1:
            continue
        marker.attributes["perm"] = ir.AttrInt64s("perm", permutations.pop())
        for user in users:
            replace(user.outputs[0], marker.outputs[0])


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    attribute = node.attributes.get("perm")
    return tuple(attribute.as_ints()) if attribute is not None else tuple(range(rank))


def _name(node: ir.Node, layer_names: Sequence[str]) -> None:
    name = layer_names[node.attributes["layer"].as_int()]
    value = constant_value(node.inputs[0])
    permuted = value.transpose(_permutation(node, value.ndim))
    constant = node.inputs[0]
    if "perm" in node.attributes:
        assert node.graph is not None
        constant = add_constant(node.graph, f"{name}.weight", permuted)
    _name_layers(node, name)
    assert constant is not None
    replace(node.outputs[0], constant)


def _quantize_weight(graph: ir.Graph, node: ir.Node, layer_names: Sequence[str], *, packed_weights: bool) -> None:
    """Integer initializer and DequantizeLinear, per output channel or per tensor."""
    name = layer_names[node.attributes["layer"].as_int()]
    bits = node.attributes["bits"].as_int()
    looked_up = any(user.op_type == "Gather" for user in consumers(node.outputs[0]))  # Gather takes no INT4
    packed = packed_weights and bits <= 4 and not looked_up
    dtype, fill = (ir.DataType.INT4.numpy(), 1) if packed else (np.dtype(np.int8), container_factor(bits))
    weight, step = constant_value(node.inputs[0]), constant_value(node.inputs[1])
    codes = np.rint(weight / step.reshape(-1, *(1,) * (weight.ndim - 1)) if step.ndim else weight / step)
    permutation = _permutation(node, weight.ndim)
    stored = np.ascontiguousarray((codes * fill).astype(dtype).transpose(permutation))
    inputs = [
        add_constant(graph, f"{name}.weight", stored),
        add_constant(graph, f"{name}.weight_scale", (step / fill).astype(np.float32)),
        add_constant(graph, f"{name}.weight_zero_point", np.zeros(step.shape, dtype)),
    ]
    attributes = {"axis": permutation.index(0)} if step.ndim else {}
    dequantize = insert_before(node, "DequantizeLinear", inputs, attributes, name=f"{name}.weight_dequantize")
    _name_layers(node, name)
    replace(node.outputs[0], dequantize)


def _name_layers(marker: ir.Node, name: str) -> None:
    """Layers are called what their weight is, those that share it are counted; a Transpose may stand between."""
    readers: list[ir.Node] = []
    for user in consumers(marker.outputs[0]):
        readers += consumers(user.outputs[0]) if user.op_type == "Transpose" else [user]
    for number, reader in enumerate((r for r in readers if r.op_type in _LAYERS), start=1):
        reader.name = name if number == 1 else f"{name}#{number}"


def _look_up_codes(graph: ir.Graph) -> None:
    """Embeddings: rows are taken from the INT8 table, and only these become numbers."""
    for node in [node for node in graph if node.op_type == "Gather"]:
        table = node.inputs[0].producer() if node.inputs[0] is not None else None
        if table is None or table.op_type != "DequantizeLinear" or constant_value(table.inputs[1]).ndim:
            continue
        name = node.name or "embedding"
        codes = insert_before(node, "Gather", [table.inputs[0], node.inputs[1]], dict(node.attributes), name=name)
        rows = insert_before(node, "DequantizeLinear", [codes, *table.inputs[1:]], name=f"{name}_dequantize")
        replace(node.outputs[0], rows)


def _merge_equal(graph: ir.Graph) -> None:
    """Equal quantizers of one tensor become one, so that its producer has a single consumer."""
    first: dict[tuple[ir.Value | None, float, int, int], ir.Node] = {}
    for node in _markers(graph, QUANTIZE_ACTIVATION):
        step, lowest, highest = _grid(node)
        kept = first.setdefault((node.inputs[0], step, lowest, highest), node)
        if kept is not node:
            replace(node.outputs[0], kept.outputs[0])


def _grid(node: ir.Node) -> tuple[float, int, int]:
    attributes = node.attributes
    return attributes["step"].as_float(), attributes["lowest"].as_int(), attributes["highest"].as_int()


def _absorb_clamps(graph: ir.Graph) -> None:
    """A Relu or Clip(0, a) right before unsigned quantizers is what their saturation does anyway."""
    for node in list(graph):
        bound = _clamp_bound(node)
        users = consumers(node.outputs[0])
        if bound is None or not users or node.outputs[0].is_graph_output():
            continue
        if any(user.op_type != QUANTIZE_ACTIVATION or _grid(user)[1] != 0 for user in users):
            continue
        highest = [_highest_below(user, bound) for user in users]
        # a bound which leaves fewer codes than half the grid stays: the file should show the bit-width
        if any(code.bit_length() < _grid(user)[2].bit_length() for code, user in zip(highest, users, strict=True)):
            continue
        for user, code in zip(users, highest, strict=True):
            user.attributes["highest"] = ir.AttrInt64("highest", code)
            user.replace_input_with(0, node.inputs[0])
        graph.remove(node, safe=True)


def _clamp_bound(node: ir.Node) -> float | None:
    """The upper bound of a node that clamps at zero from below."""
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type != "Clip" or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    bounds = [None if value is None else value.const_value for value in node.inputs[1:]]
    if bounds[0] is None or float(bounds[0].numpy()) != 0:
        return None
    if len(bounds) < 2 or node.inputs[2] is None:
        return float("inf")
    return None if bounds[1] is None else float(bounds[1].numpy())


def _highest_below(node: ir.Node, bound: float) -> int:
    step, _, highest = _grid(node)
    with np.errstate(over="ignore"):
        code = np.rint(np.float32(bound) / np.float32(step))
    return int(min(float(highest), float(code)))


def _quantize_activation(graph: ir.Graph, node: ir.Node) -> None:
    step, lowest, highest = _grid(node)
    name = node.outputs[0].name
    # UINT8 for all grids: ONNX Runtime fuses a layer only if its input and output have the same type
    zero = 128 if lowest == -highest - 1 else -lowest
    scale = add_constant(graph, f"{name}_scale", np.float32(step))
    zero_point = add_constant(graph, f"{name}_zero_point", np.uint8(zero))
    codes = insert_before(node, "QuantizeLinear", [node.inputs[0], scale, zero_point], name=f"{name}_quantize")
    if (lowest + zero, highest + zero) != (0, 255):
        low = add_constant(graph, f"{name}_low", np.uint8(lowest + zero))
        high = add_constant(graph, f"{name}_high", np.uint8(highest + zero))
        # after the rounding, for a Clip in front of QuantizeLinear would keep the layer before it in float
        codes = insert_before(node, "Clip", [codes, low, high], name=f"{name}_clip")
    dequantize = insert_before(node, "DequantizeLinear", [codes, scale, zero_point], name=f"{name}_dequantize")
    replace(node.outputs[0], dequantize)
