# SPDX-License-Identifier: Apache-2.0
"""OpenVINO IR and ONNX files of a stripped model, what they say about themselves, and the check that they compute the same."""

from djpq_nncf.export._export import export_model
from djpq_nncf.export._fold import fold_batchnorm
from djpq_nncf.export._provenance import LayerProvenance, Provenance, note_config, note_layers, read_provenance
from djpq_nncf.export._verify import ExportVerification, LayerExecution, verify_export

__all__ = [
    "ExportVerification",
    "LayerExecution",
    "LayerProvenance",
    "Provenance",
    "export_model",
    "fold_batchnorm",
    "note_config",
    "note_layers",
    "read_provenance",
    "verify_export",
]
