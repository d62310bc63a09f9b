# SPDX-License-Identifier: Apache-2.0
"""Writes a stripped model as ONNX with QuantizeLinear/DequantizeLinear nodes and integer weights."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset
from torch import fx

from djpq_nncf.errors import ExportError
from djpq_nncf.export import _onnx_quantize as quantize
from djpq_nncf.export._files import complete_files
from djpq_nncf.export._markers import NAMESPACE
from djpq_nncf.export._onnx_opset import EXPORTED, OPSETS, lower_opset
from djpq_nncf.export._program import NamedProgram, named_program, shapes_note
from djpq_nncf.export._provenance import provenance_notes

DEFAULT_OPSET = 21
_PACKED_OPSET = 21
_PROTOBUF_LIMIT = 2**31 - 1


def write_onnx(
    model: fx.GraphModule,
    path: Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    opset: int = DEFAULT_OPSET,
    packed_weights: bool = False,
) -> None:
    """Writes ``path`` (.onnx), one file with everything in it."""
    if opset not in OPSETS:
        raise ExportError(
            f"Cannot export {path} with opset={opset!r}: pass one from {OPSETS.start} (the first with a step for each "
            f"channel) to {OPSETS.stop - 1}."
        )
    if packed_weights and opset < _PACKED_OPSET:
        raise ExportError(
            f"Cannot export {path} with packed_weights and opset={opset}: 4-bit integers came with opset "
            f"{_PACKED_OPSET}. Leave out one of the two, or raise opset."
        )
    program = named_program(model, input_names, output_names, repeat=True)
    converted = _convert(program, max(opset, EXPORTED.start))
    quantize.rewrite(converted, program.layer_names, packed_weights=packed_weights)
    if opset < EXPORTED.start:
        lower_opset(converted, opset)
    # what knows no later opset reads no later format either
    converted.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    notes = {**(metadata or {}), **provenance_notes(model, "onnx", "onnxruntime"), **shapes_note(program)}
    converted.metadata_props.update({f"{NAMESPACE}.{key}": value for key, value in notes.items()})
    proto = ir.to_proto(converted)
    if proto.ByteSize() > _PROTOBUF_LIMIT:
        raise ExportError(
            f"{path} would be {proto.ByteSize() / 2**30:.1f} GiB, but one ONNX file holds 2 GiB at most. "
            "Export to .xml instead."
        )
    onnx.checker.check_model(proto)
    with complete_files(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def _convert(program: NamedProgram, opset: int) -> ir.Model:
    try:
        with _quiet(), torch.no_grad():
            exported = torch.onnx.export(
                program.program,
                dynamo=True,
                custom_translation_table=_translations(),
                opset_version=opset,
                input_names=list(program.input_names),
                output_names=list(program.output_names),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors share no base class
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer ones name passes of the exporter
            cause = cause.__cause__
        raise ExportError(
            f"torch.onnx.export cannot convert the model: {type(cause).__name__}: {cause}. Replace the operation it "
            "names, or export to .xml."
        ) from error
    assert exported is not None
    converted: ir.Model = exported.model
    _name_dimensions(converted.graph)
    return converted


def _name_dimensions(graph: ir.Graph) -> None:
    """``batch``, and ``x_2`` for dimension 2 of the input x, in place of the exporter's symbols."""
    names: dict[ir.SymbolicDim, str] = {}
    for port in graph.inputs:
        for dim, size in enumerate(port.shape or ()):
            if not isinstance(size, int):
                names.setdefault(size, f"{port.name}_{dim}" if dim else "batch")
    for port in (*graph.inputs, *graph.outputs):
        if port.shape is not None:
            port.shape = ir.Shape([size if isinstance(size, int) else names.get(size, size) for size in port.shape])


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For every marker operator the function that writes it as a node of our own domain."""
    integer, real = OpSchema.AttrType.INT, OpSchema.AttrType.FLOAT
    weight = _operator(quantize.QUANTIZE_WEIGHT, ("weight", "step"), {"bits": integer, "layer": integer})
    attributes = {"step": real, "lowest": integer, "highest": integer}
    activation = _operator(quantize.QUANTIZE_ACTIVATION, ("x",), attributes)
    name = _operator(quantize.NAME_WEIGHT, ("weight",), {"layer": integer})
    product = _operator(quantize.MULTIPLY, ("first", "second"), {"layer": integer})

    def quantize_weight(value: Any, step: Any, bits: int, layer: int) -> Any:
        return weight(value, step, bits=bits, layer=layer)

    def quantize_activation(value: Any, step: float, lowest: int, highest: int) -> Any:
        return activation(value, step=step, lowest=lowest, highest=highest)

    def name_weight(value: Any, layer: int) -> Any:
        return name(value, layer=layer)

    def multiply(first: Any, second: Any, layer: int) -> Any:
        return product(first, second, layer=layer)

    markers = torch.ops.djpq_nncf
    return {
        markers.quantize_weight.default: quantize_weight,
        markers.quantize_activation.default: quantize_activation,
        markers.name_weight.default: name_weight,
        markers.multiply.default: multiply,
    }


def _operator(name: str, inputs: Sequence[str], attributes: Mapping[str, OpSchema.AttrType]) -> Op:
    schema = OpSchema(
        name,
        NAMESPACE,
        1,
        inputs=[OpSchema.FormalParameter(parameter, "T") for parameter in inputs],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[OpSchema.Attribute(key, kind, "", required=True) for key, kind in attributes.items()],
    )
    return Op(Opset(NAMESPACE, 1), name, schema)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress and advice off the user's terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
