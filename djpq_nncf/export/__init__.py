# SPDX-License-Identifier: Apache-2.0
"""OpenVINO IR and ONNX files of a stripped model, and the check that they compute the same."""

from djpq_nncf.export._export import export_model
from djpq_nncf.export._fold import fold_batchnorm
from djpq_nncf.export._verify import ExportVerification, LayerExecution, verify_export

__all__ = ["ExportVerification", "LayerExecution", "export_model", "fold_batchnorm", "verify_export"]
