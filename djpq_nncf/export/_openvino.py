# SPDX-License-Identifier: Apache-2.0
"""Writes a stripped model as OpenVINO IR with INT8 weights; low bits ride in INT8 containers."""

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from openvino._offline_transformations import compress_quantize_weights_transformation
from openvino.frontend.pytorch import ConversionExtension
from torch import fx

from djpq_nncf.errors import ExportError
from djpq_nncf.export._files import complete_files
from djpq_nncf.export._markers import NAMESPACE
from djpq_nncf.export._openvino_kernels import (
    fake_quantize,
    normalize_numbers,
    pad_pools,
    round_before_sums,
    separate_strides,
)
from djpq_nncf.export._openvino_operators import convert_prelu, keep_operators
from djpq_nncf.export._openvino_packing import pack_weights
from djpq_nncf.export._program import NamedProgram, named_program, shapes_note
from djpq_nncf.export._provenance import provenance_notes

_WEIGHT_CODES = (-127, 127)
# the ranges for which the CPU plugin has INT8 kernels, whatever the bit-width inside them
_SIGNED_CODES = (-128, 127)
_UNSIGNED_CODES = (0, 255)
_LAYER_TYPES = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
)
_LAYER = "weight of layer "
_PRODUCT = "layer "
# what may stand between a layer and the constant of its weight
_ON_WEIGHTS = frozenset(
    {"Convert", "FakeQuantize", "Multiply", "Reshape", "Squeeze", "Subtract", "Transpose", "Unsqueeze"}
)


def write_openvino(
    model: fx.GraphModule,
    path: Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    packed_weights: bool = False,
) -> None:
    """Writes ``path`` (.xml) with its .bin."""
    program = named_program(model, input_names, output_names, repeat=False)
    keep_operators(program.program.graph)
    converted = _convert(program)
    _name_layers(converted, program.layer_names)
    pad_pools(converted)
    separate_strides(converted)
    round_before_sums(converted)
    normalize_numbers(converted)
    compress_quantize_weights_transformation(converted)
    if packed_weights:
        pack_weights(converted)
    notes = {**(metadata or {}), **provenance_notes(model, "openvino"), **shapes_note(program)}
    for key, value in notes.items():
        converted.set_rt_info(value, [NAMESPACE, key])
    with complete_files(path, companions=(".bin",)) as temporary:
        # OpenVINO does not notice that the disk is full: ask for the room, then look at what arrived
        ov.save_model(converted, temporary, compress_to_fp16=False)
        _check_readable(temporary)


def _convert(program: NamedProgram) -> ov.Model:
    extensions = [
        ConversionExtension(f"{NAMESPACE}.quantize_weight.default", _convert_weight),
        ConversionExtension(f"{NAMESPACE}.quantize_activation.default", _convert_activation),
        ConversionExtension(f"{NAMESPACE}.name_weight.default", _convert_name),
        ConversionExtension(f"{NAMESPACE}.multiply.default", _convert_product),
        ConversionExtension("aten.index_select.default", _convert_selection),
        ConversionExtension(f"{NAMESPACE}.prelu.default", convert_prelu),
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ov.convert_model(program.program, extension=extensions)
    except Exception as error:  # the frontend's errors share no base class
        raise ExportError(
            f"OpenVINO cannot convert the model: {error}. Replace the operation it names, or export to .onnx."
        ) from error
    _name_ports("input", model.inputs, program.input_names)
    _name_ports("output", model.outputs, program.output_names)
    shapes = {
        port: ov.PartialShape([-1 if size is None else size for size in shape])
        for port, shape in zip(model.inputs, program.shapes, strict=True)
    }
    model.reshape(shapes)
    return model


def _name_ports(kind: str, ports: list[Any], names: Sequence[str]) -> None:
    if len(ports) != len(names):
        raise ExportError(
            f"OpenVINO kept {len(ports)} of the {len(names)} {kind}s {list(names)}: an unused one has to go "
            "from the model before export."
        )
    for port in ports:
        port.get_tensor().set_names(set())
    for port, name in zip(ports, names, strict=True):
        # outputs may share a tensor: it has the names of both
        port.get_tensor().add_names({name})
        if kind == "input":
            port.get_node().set_friendly_name(name)


def _convert_weight(context: Any) -> list[Any]:
    weight, step = context.get_input(0), context.get_input(1).get_node().data
    if step.ndim:
        step = step.reshape(-1, *(1,) * (len(weight.get_partial_shape()) - 1))
    node = fake_quantize(weight, step, _WEIGHT_CODES)
    node.set_friendly_name(f"{_LAYER}{context.get_values_from_const_input(3)}")
    return list(node.outputs())


def _convert_activation(context: Any) -> list[Any]:
    x = context.get_input(0)
    step, lowest, highest = (context.get_values_from_const_input(index) for index in (1, 2, 3))
    container = _container(lowest, highest)
    if (lowest, highest) != container:
        x = ops.clamp(x, lowest * step, highest * step).output(0)
    return list(fake_quantize(x, step, container).outputs())


def _container(lowest: int, highest: int) -> tuple[int, int]:
    """256 codes around those of a quantizer."""
    if lowest >= 0:
        return _UNSIGNED_CODES
    return _SIGNED_CODES if lowest == -highest - 1 else (lowest, lowest + 255)


def _convert_name(context: Any) -> list[Any]:
    weight = context.get_input(0)
    weight.get_node().set_friendly_name(f"{_LAYER}{context.get_values_from_const_input(1)}")
    return [weight]


def _convert_product(context: Any) -> list[Any]:
    node = ops.matmul(context.get_input(0), context.get_input(1), False, False)
    node.set_friendly_name(f"{_PRODUCT}{context.get_values_from_const_input(2)}")
    return list(node.outputs())


def _convert_selection(context: Any) -> list[Any]:
    """A gather along an axis counted from the end.

    Counted from the front, OpenVINO moves a gather that permutes the channels of a convolution into its weights, and
    permutes these by the same order instead of its inverse (``ReverseInputChannelsFusion``).
    """
    x, dim, index = context.get_input(0), context.get_values_from_const_input(1), context.get_input(2)
    rank = x.get_partial_shape().rank.get_length()
    return list(ops.gather(x, index, ops.constant(np.int64(dim % rank - rank))).outputs())


def _name_layers(model: ov.Model, names: Sequence[str]) -> None:
    """Gives every layer the name its weight carries, and every product its own; a shared weight's layers count."""
    times: Counter[str] = Counter()
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _LAYER_TYPES:
            continue
        if node.get_friendly_name().startswith(_PRODUCT):
            node.set_friendly_name(names[int(node.get_friendly_name().removeprefix(_PRODUCT))])
            continue
        weight = _named_weight(node.input_value(1)) or _named_weight(node.input_value(0))
        if weight is None:
            continue
        name = names[int(weight.get_friendly_name().removeprefix(_LAYER))]
        times[name] += 1
        node.set_friendly_name(name if times[name] == 1 else f"{name}#{times[name]}")
    for node in model.get_ops():
        if node.get_friendly_name().startswith(_LAYER):
            node.set_friendly_name(f"{names[int(node.get_friendly_name().removeprefix(_LAYER))]}.weight")


def _named_weight(value: Any) -> Any:
    """The node on the way from a layer to the constant of its weight that carries a name."""
    node = value.get_node()
    while not node.get_friendly_name().startswith(_LAYER):
        if node.get_type_name() not in _ON_WEIGHTS:
            return None
        node = node.input_value(0).get_node()
    return node


def _check_readable(path: Path) -> None:
    try:
        ov.Core().read_model(path)
    except RuntimeError as error:
        logging.getLogger(__name__).debug("what was written cannot be read back", exc_info=error)
        raise OSError("the file that was written cannot be read back, the disk may be full") from error
