# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: one safetensors file with JSON inside, checked when it is read; nothing in it is executed."""

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from djpq_nncf.algorithms._contract import CompressionController
from djpq_nncf.errors import CheckpointError

_FORMAT = "djpq_nncf-checkpoint-1"
_REMEDY = "Resume from an earlier checkpoint, or start again."


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load_checkpoint` read.

    Attributes:
        compression_state: for ``create_compressed_model``.
        extra: what the caller of :func:`save_checkpoint` added.
    """

    compression_state: dict[str, Any]
    extra: dict[str, Any]
    _tensors: Mapping[str, Tensor]
    _optimizer: Any

    def restore(self, controller: CompressionController, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Bring model, controller, optimizer and torch's random number generators to where the run was.

        Raises:
            CheckpointError: the checkpoint belongs to another network, or holds no optimizer.
        """
        controller.load_state(self.compression_state)
        state = {
            name.removeprefix("model."): value for name, value in self._tensors.items() if name.startswith("model.")
        }
        try:
            controller.model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"The checkpoint does not fit the model: {error}. Create the model with the same network and config."
            ) from error
        if optimizer is not None:
            if self._optimizer is None:
                raise CheckpointError("The checkpoint holds no optimizer state: it was saved without an optimizer.")
            try:
                optimizer.load_state_dict(_unpack(self._optimizer, self._tensors))
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"The optimizer in the checkpoint differs from the one given: {error}. Build it as in the run that "
                    "saved the checkpoint."
                ) from error
        torch.set_rng_state(self._tensors["rng.cpu"])
        for index in range(torch.cuda.device_count()):
            if f"rng.cuda.{index}" in self._tensors:
                torch.cuda.set_rng_state(self._tensors[f"rng.cuda.{index}"], index)


def save_checkpoint(
    path: str | os.PathLike[str],
    controller: CompressionController,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write everything a run needs to continue as if it had not been interrupted.

    Args:
        path: file to write; it is replaced only once the new one is complete.
        controller: of the run; its model is saved too.
        optimizer: its state (Adam's moments, momentum) is saved too.
        extra: further plain data (of a learning-rate scheduler, say).

    Raises:
        CheckpointError: the file cannot be written, or ``extra`` is no plain data.
    """
    tensors = {f"model.{name}": value for name, value in controller.model.state_dict().items()}
    packed = None if optimizer is None else _pack(optimizer.state_dict(), "optimizer", tensors)
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"rng.cuda.{index}"] = state
    try:
        document = json.dumps(
            {"compression_state": controller.get_compression_state(), "optimizer": packed, "extra": dict(extra or {})}
        )
    except TypeError as error:
        raise CheckpointError(
            f"Checkpoint '{path}': extra is no plain data: {error}. Leave it to JSON types."
        ) from error
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"format": _FORMAT, "document": document, "digest": _digest(document, plain)}
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(save(plain, metadata))
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"Checkpoint '{target}' cannot be written: {error.strerror or error}. Free space or choose another path; "
            "an earlier checkpoint there is untouched."
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: it is missing, truncated, changed since it was written, or not a checkpoint.
    """
    target = Path(path)
    try:
        with safe_open(target, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except FileNotFoundError:
        raise CheckpointError(f"Checkpoint '{target}' does not exist. Check the path.") from None
    except (SafetensorError, OSError, struct.error) as error:
        raise CheckpointError(f"Checkpoint '{target}' is damaged or no checkpoint: {error}. {_REMEDY}") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"'{target}' is a safetensors file but no checkpoint of this version ({metadata.get('format')!r} instead "
            f"of {_FORMAT!r}). Load plain weights with model.load_state_dict."
        )
    if metadata.get("digest") != _digest(metadata.get("document", ""), tensors):
        raise CheckpointError(f"Checkpoint '{target}' was changed after it was written. {_REMEDY}")
    document = json.loads(metadata["document"])
    return Checkpoint(document["compression_state"], document["extra"], tensors, document["optimizer"])


def _digest(document: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Nested data as JSON: tensors go to ``tensors``, keys and types that JSON lacks are spelled out."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(entry, f"{name}.{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(entry, f"{name}.{i}", tensors) for i, entry in enumerate(value)],
                "tuple": isinstance(value, tuple)}  # fmt: skip
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise CheckpointError(f"The optimizer state holds a {type(value).__name__} at '{name}', which cannot be saved.")


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "items" in packed:
        return {key: _unpack(entry, tensors) for key, entry in packed["items"]}
    if "list" in packed:
        entries = [_unpack(entry, tensors) for entry in packed["list"]]
        return tuple(entries) if packed["tuple"] else entries
    return packed["value"]
