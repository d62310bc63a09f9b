# SPDX-License-Identifier: Apache-2.0
"""From the settings of a run to its network under compression, as new or as the checkpoint has it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from djpq_nncf.algorithms import create_compressed_model, load_checkpoint
from djpq_nncf.errors import CaptureError, DataError, RunError
from djpq_nncf.run._classifier import train_classifier
from djpq_nncf.run._data import load_batches
from djpq_nncf.run._folder import CONTINUE, RunFolder
from djpq_nncf.run._monitor import TrainingMonitor
from djpq_nncf.run._objects import find_object, load_model, load_weights
from djpq_nncf.run._run import CompressionRun
from djpq_nncf.run._settings import RunSettings


def build_run(
    folder: RunFolder, settings: RunSettings, device: torch.device | str | None, workers: int
) -> CompressionRun:
    """The network under compression, as new or as the checkpoint has it; writes nothing.

    Raises:
        DjpqError: config, model, data, device or checkpoint are not usable.
    """
    torch.manual_seed(settings.seed)
    chosen = _find_device(device)
    train_batches, val_batches, classes = load_batches(settings, workers=workers)
    original = _load_original(settings, classes).to(chosen).eval()
    checkpoint = load_checkpoint(folder.checkpoint) if folder.checkpoint.is_file() else None
    ctrl, model = create_compressed_model(
        original,
        settings.nncf_config,
        None if checkpoint is None else checkpoint.compression_state,
        init_data=train_batches,
    )
    if checkpoint is not None:
        checkpoint.restore(ctrl)
    length = len(train_batches) if hasattr(train_batches, "__len__") else None  # type: ignore[arg-type]
    return CompressionRun(
        ctrl=ctrl,
        model=model,
        original=original,
        settings=settings,
        folder=folder,
        train_batches=train_batches,
        val_batches=val_batches,
        device=chosen,
        monitor=TrainingMonitor(ctrl, epochs=settings.epochs, show=False),
        total_steps=None if length is None else settings.epochs * length,
        epochs_done=0 if checkpoint is None else int(checkpoint.extra["epochs_done"]),
    )


def rebuild_run(path: str | os.PathLike[str]) -> CompressionRun:
    """The network of a run as its training left it, on the CPU.

    Args:
        path: folder of the run.

    Raises:
        RunError: the folder holds no run, or one that is not trained to the end.
    """
    folder = RunFolder(path)
    settings = folder.settings
    if folder.status == "training" or not folder.checkpoint.is_file():
        raise RunError(f"The run in {folder.path} is not finished: it has no network to use yet. {CONTINUE}")
    return build_run(folder, settings, "cpu", 0)


def find_training(settings: RunSettings) -> Callable[[CompressionRun], Any]:
    """The training function that the settings name, or that of classifiers.

    Raises:
        CaptureError: there is no such function.
    """
    if settings.train is None:
        return train_classifier
    function = find_object(settings.train)
    if not callable(function):
        raise CaptureError(f"--train '{settings.train}' is a {type(function).__name__}. Name a function.")
    train: Callable[[CompressionRun], Any] = function
    return train


def _find_device(device: torch.device | str | None) -> torch.device:
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise RunError(f"--device '{device}' cannot be used: {reason} Write cpu or cuda, or leave it out.") from error
    return chosen


def _load_original(settings: RunSettings, classes: int | None) -> nn.Module:
    if not settings.model.startswith("torchvision:"):
        original = load_model(settings.model)
    elif settings.weights is None:
        raise DataError(
            f"'{settings.model}' comes without its weights, and compression starts from a trained network. Give its "
            "state dict with --checkpoint FILE, or a package.module:factory that brings its weights."
        )
    else:
        original = load_model(settings.model, **({} if classes is None else {"num_classes": classes}))
    if settings.weights is not None:
        load_weights(original, Path(settings.weights))
    return original
