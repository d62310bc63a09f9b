# SPDX-License-Identifier: Apache-2.0
"""Writes a stripped model in the format its file name asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from djpq_nncf.errors import ExportError


def export_model(
    model: fx.GraphModule,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    packed_weights: bool = False,
) -> None:
    """Writes a stripped model as OpenVINO IR (``.xml`` with ``.bin``) or ONNX (``.onnx``).

    Weights are stored as INT8 whatever their bit-width, activations below 8 bits are clamped to their grid
    in front of (OpenVINO) or behind (ONNX) an 8-bit quantizer with the same step: both runtimes then use
    INT8 kernels and compute what the fake-quantized model computes. The batch size is dynamic.

    Args:
        model: what ``strip()`` returned; it is not changed.
        path: where to write. A file there is replaced only once the new one is complete.
        input_names: default to the arguments of ``forward``.
        output_names: default to ``output`` for a single tensor, or to the keys of a returned mapping.
        metadata: texts to store in the file, besides its provenance (see :func:`read_provenance`).
        opset: of ONNX, 13 to 25; None: 21.
        packed_weights: store weights of up to 4 bits in 4 bits (OpenVINO: those of 2 bits in 2) instead of INT8. The
            outputs stay the same and the file becomes smaller, but such layers run in float on CPUs.

    Raises:
        ExportError: for another suffix, an operation the format does not know, an opset that is not there or too old
            for what it should hold, or a file that cannot be written; it names the path and the cause.
    """
    path = Path(path)
    options: dict[str, Any] = {"input_names": input_names, "output_names": output_names, "metadata": metadata}
    # the runtimes take seconds to import
    if path.suffix == ".xml":
        from djpq_nncf.export._openvino import write_openvino

        if opset is not None:
            raise ExportError(f"Cannot export to {path} with opset={opset}: OpenVINO IR has none. Leave it out.")
        write_openvino(model, path, **options, packed_weights=packed_weights)
    elif path.suffix == ".onnx":
        from djpq_nncf.export._onnx import DEFAULT_OPSET, write_onnx

        opset = DEFAULT_OPSET if opset is None else opset
        write_onnx(model, path, **options, opset=opset, packed_weights=packed_weights)
    else:
        raise ExportError(f"Cannot export to {path}: name a .xml (OpenVINO IR) or an .onnx file.")
