# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. Each message names the thing that is wrong and the remedy."""


class DjpqError(Exception):
    """Base of every error this package raises on bad input."""


class ConfigError(DjpqError, ValueError):
    """The configuration is not valid."""


class CaptureError(DjpqError, RuntimeError):
    """The model cannot be captured as a graph."""


class PlacementError(DjpqError, RuntimeError):
    """Gates or quantizers cannot be placed in the graph."""


class PruningError(DjpqError, ValueError):
    """Channels cannot be closed as asked."""


class DataError(DjpqError, ValueError):
    """The data given for initialisation, training or verification is unusable."""


class CheckpointError(DjpqError, RuntimeError):
    """A checkpoint is damaged, incomplete or belongs to something else."""


class ExportError(DjpqError, RuntimeError):
    """A model cannot be exported or the exported file is not what it should be."""


class RunError(DjpqError, RuntimeError):
    """A run folder cannot be made, read or continued."""
