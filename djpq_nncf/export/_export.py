# SPDX-License-Identifier: Apache-2.0
"""Writes a stripped model in the format its file name asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import fx

from djpq_nncf.errors import ExportError


def export_model(
    model: fx.GraphModule,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
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

    Raises:
        ExportError: for another suffix, an operation the format does not know, or a file that cannot be
            written; it names the path and the cause.
    """
    path = Path(path)
    # the runtimes take seconds to import
    if path.suffix == ".xml":
        from djpq_nncf.export._openvino import write_openvino as write
    elif path.suffix == ".onnx":
        from djpq_nncf.export._onnx import write_onnx as write
    else:
        raise ExportError(f"Cannot export to {path}: name a .xml (OpenVINO IR) or an .onnx file.")
    write(model, path, input_names=input_names, output_names=output_names, metadata=metadata)
