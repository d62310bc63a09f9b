# SPDX-License-Identifier: Apache-2.0
"""A file that takes part in a comparison."""

from dataclasses import dataclass
from pathlib import Path

RUNTIMES = {"openvino": ".xml", "onnxruntime": ".onnx"}
"""Package -> suffix of the files that it runs."""
_NAMES = {".xml": "OpenVINO", ".onnx": "ONNX Runtime"}


def runtime_name(path: Path) -> str:
    """What runs a file."""
    return _NAMES[path.suffix]


@dataclass(frozen=True)
class Entry:
    """A file, and what it is called in the table.

    Attributes:
        model: the network that it was made of, or the file as the user named it.
        path: the file.
        variant: of a network ("FP32", "INT8, NNCF", ...); None of a file.
        is_baseline: those behind it in the same runtime are compared with it.
        shape: of the only input, where the file leaves more than the batch open.
    """

    model: str
    path: Path
    variant: str | None = None
    is_baseline: bool = False
    shape: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Of the model, with its variant."""
        return self.model if self.variant is None else f"{self.model}, {self.variant}"
