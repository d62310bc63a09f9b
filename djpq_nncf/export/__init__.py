# SPDX-License-Identifier: Apache-2.0
"""OpenVINO IR and ONNX files of a stripped model: written, read, run, and checked to compute the same."""

from djpq_nncf.export._export import export_model
from djpq_nncf.export._files import complete_files, file_size
from djpq_nncf.export._fold import fold_batchnorm
from djpq_nncf.export._integer_bias import round_biases
from djpq_nncf.export._notes import FileInput, read_notes
from djpq_nncf.export._provenance import (
    LayerProvenance,
    Provenance,
    config_of,
    note_config,
    note_layers,
    package_versions,
    read_provenance,
)
from djpq_nncf.export._runtime import Execution, Runtime, open_runtime
from djpq_nncf.export._verify import ExportVerification, LayerExecution, verify_export

__all__ = [
    "Execution",
    "ExportVerification",
    "FileInput",
    "LayerExecution",
    "LayerProvenance",
    "Provenance",
    "Runtime",
    "complete_files",
    "config_of",
    "export_model",
    "file_size",
    "fold_batchnorm",
    "note_config",
    "note_layers",
    "open_runtime",
    "package_versions",
    "read_notes",
    "read_provenance",
    "round_biases",
    "verify_export",
]
