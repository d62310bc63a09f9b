# SPDX-License-Identifier: Apache-2.0
"""Joint structured pruning and mixed-precision quantization for NNCF on PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from djpq_nncf.algorithms import (
        CompressionController,
        CompressionStage,
        compress_post_training,
        create_compressed_model,
        load_checkpoint,
        register_algorithm,
        save_checkpoint,
    )
    from djpq_nncf.config import NNCFConfig
    from djpq_nncf.errors import DjpqError
    from djpq_nncf.export import read_provenance, verify_export

__version__ = "0.1.0"

__all__ = [
    "CompressionController",
    "CompressionStage",
    "DjpqError",
    "NNCFConfig",
    "__version__",
    "compress_post_training",
    "create_compressed_model",
    "load_checkpoint",
    "read_provenance",
    "register_algorithm",
    "save_checkpoint",
    "verify_export",
]

_HOMES = {
    "DjpqError": "djpq_nncf.errors",
    "NNCFConfig": "djpq_nncf.config",
    "read_provenance": "djpq_nncf.export",
    "verify_export": "djpq_nncf.export",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `djpq-nncf validate` does without
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "djpq_nncf.algorithms")), name)


def __dir__() -> list[str]:
    return __all__
