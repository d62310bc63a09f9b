# SPDX-License-Identifier: Apache-2.0
"""Rewrites an ONNX graph for an operator set older than those the exporter writes."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from djpq_nncf.errors import ExportError
from djpq_nncf.export._onnx_nodes import add_constant, constant_value, insert_before, is_constant, replace

EXPORTED = range(18, 26)
"""What torch.onnx.export writes and ONNX Runtime takes."""
OPSETS = range(13, EXPORTED.stop)
"""From 13 on DequantizeLinear takes a step for each channel."""

_Rule = Callable[[ir.Node], None]
_RULES: dict[str, tuple[int, _Rule]] = {}


def lower_opset(model: ir.Model, opset: int) -> None:
    """Write ``model``, in place, for an ``opset`` of `OPSETS` below that which it has.

    Raises:
        ExportError: what an operator does cannot be said there; it names the operator, and the first opset in which
            it can.
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        least, rule = _RULES.get(node.op_type, (0, None))
        if rule is not None and opset < least and node.domain == "":
            rule(node)
    model.opset_imports[""] = opset
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        missing = _missing(node, opset)
        if missing is not None:
            least = next(later for later in OPSETS if later > opset and _missing(node, later) is None)
            raise ExportError(
                f"ONNX opset {opset} has no {missing}, which '{node.name}' needs. Pass opset={least} or more, or "
                "replace the operation in the model."
            )


def _missing(node: ir.Node, opset: int) -> str | None:
    """What of a node an opset lacks."""
    if node.domain != "":
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return node.op_type
    for name, attribute in node.attributes.items():
        if name not in schema.attributes:
            return f"{node.op_type} with {name}"
        if name == "reduction" and attribute.value in ("max", "min") and opset < 18:  # of scattering
            return f"{node.op_type} with reduction {attribute.value}"
    if len(node.inputs) > schema.max_input:
        return f"{node.op_type} with {len(node.inputs)} inputs"
    return None


def _rule(*operators: str, since: int) -> Callable[[_Rule], _Rule]:
    """Registers how to write operators that have their present form since some opset."""

    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(operators, (since, rule)))
        return rule

    return register


class _Writer:
    """Adds nodes in front of one that they replace."""

    def __init__(self, node: ir.Node) -> None:
        assert node.graph is not None
        self._node, self._graph, self._count = node, node.graph, 0

    def __call__(self, operator: str, *inputs: ir.Value | float | None, **attributes: object) -> ir.Value:
        self._count += 1
        name = f"{self._node.name}.{self._count}"
        values = [
            add_constant(self._graph, f"{name}_constant", np.float32(x)) if isinstance(x, float) else x for x in inputs
        ]
        return insert_before(self._node, operator, values, attributes, name=f"{name}_{operator}")


@_rule("LayerNormalization", since=17)
def _layer_normalization(node: ir.Node) -> None:
    if len(node.outputs) > 1:
        return
    write = _Writer(node)
    x, scale, bias = (*node.inputs, None)[:3]
    axis = node.attributes.get_int("axis", -1)
    if axis >= 0:
        if x is None or x.shape is None:
            return
        axis -= len(x.shape)
    axes = list(range(axis, 0))
    # in the form that ONNX Runtime makes one kernel of again
    centred = write("Sub", x, write("ReduceMean", x, axes=axes))
    variance = write("ReduceMean", write("Pow", centred, 2.0), axes=axes)
    deviation = write("Sqrt", write("Add", variance, node.attributes.get_float("epsilon", 1e-5)))
    result = write("Mul", write("Div", centred, deviation), scale)
    replace(node.outputs[0], result if bias is None else write("Add", result, bias))


@_rule("Mish", since=18)
def _mish(node: ir.Node) -> None:
    write, x = _Writer(node), node.inputs[0]
    replace(node.outputs[0], write("Mul", x, write("Tanh", write("Softplus", x))))


@_rule("HardSwish", since=14)
def _hard_swish(node: ir.Node) -> None:
    write, x = _Writer(node), node.inputs[0]
    replace(node.outputs[0], write("Mul", x, write("HardSigmoid", x, alpha=1 / 6, beta=0.5)))


@_rule(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare"),
    since=18,
)
def _reduction(node: ir.Node) -> None:
    """Axes were an attribute; without any, all are reduced, unless the node says to reduce none."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        if not is_constant(node.inputs[1]):
            return
        axes = constant_value(node.inputs[1]).tolist()
        if axes:
            node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    if "axes" in node.attributes or not node.attributes.get_int("noop_with_empty_axes", 0):
        node.resize_inputs(1)
        node.attributes.pop("noop_with_empty_axes", None)


@_rule("Split", since=18)
def _split(node: ir.Node) -> None:
    """Sizes had to be given if they differ."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    size = shape[node.attributes.get_int("axis", 0)] if shape is not None else None
    if "num_outputs" in node.attributes and isinstance(size, int):
        assert node.graph is not None
        count = len(node.outputs)
        part = -(-size // count)
        sizes = np.array([part] * (count - 1) + [size - part * (count - 1)], np.int64)
        node.resize_inputs(2)
        node.replace_input_with(1, add_constant(node.graph, f"{node.name}.sizes", sizes))
        del node.attributes["num_outputs"]


@_rule("Shape", since=15)
def _shape(node: ir.Node) -> None:
    """Part of a shape had to be cut out."""
    start, end = (
        node.attributes.get_int(name, default) for name, default in (("start", 0), ("end", np.iinfo("i8").max))
    )
    if node.attributes:
        assert node.graph is not None
        graph = node.graph
        bounds = [add_constant(graph, f"{node.name}.bound", np.array([bound], np.int64)) for bound in (start, end)]
        write = _Writer(node)
        replace(node.outputs[0], write("Slice", write("Shape", node.inputs[0]), *bounds))


@_rule("Reshape", since=14)
def _reshape(node: ir.Node) -> None:
    """Zero always meant the size there is; sizes that are computed are none of tensors without elements."""
    means_none = node.attributes.get_int("allowzero", 0) and is_constant(node.inputs[1])
    if not means_none or 0 not in constant_value(node.inputs[1]):
        node.attributes.pop("allowzero", None)


@_rule("Resize", "ScatterElements", "ScatterND", since=18)
def _without_what_changes_nothing(node: ir.Node) -> None:
    neutral = {"antialias": 0, "keep_aspect_ratio_policy": "stretch", "reduction": "none"}
    for name, value in neutral.items():
        if name in node.attributes and node.attributes[name].value == value:
            del node.attributes[name]
