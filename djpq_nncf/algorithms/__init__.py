# SPDX-License-Identifier: Apache-2.0
"""Compression algorithms: the registry, the contract, and one package for each."""

from djpq_nncf.algorithms import djpq
from djpq_nncf.algorithms._checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from djpq_nncf.algorithms._contract import CompressionController, CompressionScheduler, CompressionStage
from djpq_nncf.algorithms._create import create_compressed_model
from djpq_nncf.algorithms._post_training import compress_post_training
from djpq_nncf.algorithms._registry import get_algorithm, known_algorithms, register_algorithm

__all__ = [
    "Checkpoint",
    "CompressionController",
    "CompressionScheduler",
    "CompressionStage",
    "compress_post_training",
    "create_compressed_model",
    "djpq",
    "get_algorithm",
    "known_algorithms",
    "load_checkpoint",
    "register_algorithm",
    "save_checkpoint",
]
