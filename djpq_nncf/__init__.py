# SPDX-License-Identifier: Apache-2.0
"""Joint structured pruning and mixed-precision quantization for NNCF on PyTorch."""

from djpq_nncf.algorithms import (
    CompressionController,
    CompressionStage,
    create_compressed_model,
    load_checkpoint,
    register_algorithm,
    save_checkpoint,
)
from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import DjpqError
from djpq_nncf.export import verify_export

__version__ = "0.1.0"

__all__ = [
    "CompressionController",
    "CompressionStage",
    "DjpqError",
    "NNCFConfig",
    "__version__",
    "create_compressed_model",
    "load_checkpoint",
    "register_algorithm",
    "save_checkpoint",
    "verify_export",
]
