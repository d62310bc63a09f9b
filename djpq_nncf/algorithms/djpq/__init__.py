# SPDX-License-Identifier: Apache-2.0
"""Differentiable joint pruning and quantization (Wang, Lu, Blankevoort 2020)."""

from djpq_nncf.algorithms.djpq._build import build_djpq, insert_gates_and_quantizers
from djpq_nncf.algorithms.djpq._controller import DJPQController
from djpq_nncf.algorithms.djpq._network import CompressedNetwork
from djpq_nncf.algorithms.djpq._settings import DJPQSettings
from djpq_nncf.algorithms.djpq._statistics import DJPQStatistics, LayerStatistics, NNCFStatistics
from djpq_nncf.algorithms.djpq._targets import block_of

__all__ = [
    "CompressedNetwork",
    "DJPQController",
    "DJPQSettings",
    "DJPQStatistics",
    "LayerStatistics",
    "NNCFStatistics",
    "block_of",
    "build_djpq",
    "insert_gates_and_quantizers",
]
