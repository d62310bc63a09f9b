# SPDX-License-Identifier: Apache-2.0
"""A whole compression as a folder: training that resumes, its log, what was exported, and the report."""

from djpq_nncf.run._build import rebuild_run
from djpq_nncf.run._classifier import train_classifier
from djpq_nncf.run._compress import compress_run
from djpq_nncf.run._data import image_folder_batches
from djpq_nncf.run._finish import export_run, verify_run, write_run_report
from djpq_nncf.run._folder import RunFolder
from djpq_nncf.run._monitor import TrainingMonitor
from djpq_nncf.run._objects import find_object, load_model
from djpq_nncf.run._run import CompressionRun
from djpq_nncf.run._settings import RunSettings

__all__ = [
    "CompressionRun",
    "RunFolder",
    "RunSettings",
    "TrainingMonitor",
    "compress_run",
    "export_run",
    "find_object",
    "image_folder_batches",
    "load_model",
    "rebuild_run",
    "train_classifier",
    "verify_run",
    "write_run_report",
]
