# SPDX-License-Identifier: Apache-2.0
"""Reads what stands in a file besides the network: the texts that were stored in it, and what its inputs are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from djpq_nncf.cost._recount import SHAPES_KEY, damaged
from djpq_nncf.export._files import check_exported
from djpq_nncf.export._markers import NAMESPACE


@dataclass(frozen=True)
class FileInput:
    """An input of a file.

    Attributes:
        name: of the tensor.
        shape: None stands for any size.
        dtype: of its elements.
        example: the shape that the network was exported with; None where the file does not say.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    example: tuple[int, ...] | None

    @property
    def is_batched(self) -> bool:
        """Is the first dimension free?"""
        return bool(self.shape) and self.shape[0] is None

    def takes(self, shape: Sequence[int]) -> bool:
        """Does a value of this shape fit?"""
        return len(shape) == len(self.shape) and all(
            size in (None, given) for size, given in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"'{self.name}' [{sizes}]"

    def random(self, shape: Sequence[int], generator: np.random.Generator) -> NDArray[Any]:
        """Standard normal numbers; zeros and ones where it does not take floating point."""
        if self.dtype.kind == "f":
            return generator.standard_normal(shape).astype(self.dtype)
        return generator.integers(0, 2, shape).astype(self.dtype)


@dataclass(frozen=True)
class FileNotes:
    """What :func:`read_notes` found: texts by their key, without those of others, and the inputs in order."""

    texts: Mapping[str, str]
    inputs: tuple[FileInput, ...]


def read_notes(path: Path) -> FileNotes:
    """Read them from a ``.xml`` or ``.onnx`` file.

    Raises:
        ExportError: the file is missing or damaged, or is neither OpenVINO IR nor ONNX.
    """
    check_exported(path, "read")
    try:
        return _openvino(path) if path.suffix == ".xml" else _onnx(path)
    except Exception as error:  # OpenVINO's, protobuf's and JSON's errors share no base class
        raise damaged(path, error) from error


def _openvino(path: Path) -> FileNotes:
    import openvino as ov

    model = ov.Core().read_model(path)
    texts: dict[str, str] = model.get_rt_info(NAMESPACE).value if model.has_rt_info(NAMESPACE) else {}
    examples = _examples(texts)
    inputs = []
    for port in model.inputs:
        name, shape = port.get_any_name(), port.get_partial_shape()
        sizes = tuple(None if size.is_dynamic else size.get_length() for size in shape)
        inputs.append(FileInput(name, sizes, np.dtype(port.get_element_type().to_dtype()), examples.get(name)))
    return FileNotes(texts, tuple(inputs))


def _onnx(path: Path) -> FileNotes:
    import onnx

    model = onnx.load(path, load_external_data=False)
    prefix = f"{NAMESPACE}."
    entries = {entry.key: entry.value for entry in model.metadata_props}
    texts = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
    examples = _examples(texts)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for port in model.graph.input:
        if port.name in constants:  # old files list their weights among the inputs
            continue
        kind = port.type.tensor_type
        sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        inputs.append(FileInput(port.name, sizes, dtype, examples.get(port.name)))
    return FileNotes(texts, tuple(inputs))


def _examples(texts: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in json.loads(texts.get(SHAPES_KEY, "{}")).items()}
