# SPDX-License-Identifier: Apache-2.0
"""What a file is timed on: random inputs of the right shapes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from djpq_nncf.errors import DataError
from djpq_nncf.export import FileInput, read_notes


def random_inputs(path: Path, batch: int, shape: Sequence[int] | None = None) -> list[NDArray[Any]]:
    """Inputs of an exported file, in its order: normal noise, and zeros and ones where it takes integers.

    Args:
        path: the file.
        batch: what the first dimension becomes where it is free.
        shape: of the only input, for the sizes that are free besides; its first size does not count.

    Raises:
        ExportError: the file is missing or damaged.
        DataError: sizes are not known, or do not fit the file.
    """
    ports = read_notes(path).inputs
    if shape is not None and len(ports) != 1:
        raise DataError(f"{path} has {len(ports)} inputs, and --input-shape is the shape of one. Leave it out.")
    if not any(port.is_batched for port in ports) and all(port.shape[:1] != (batch,) for port in ports):
        raise DataError(f"{path} takes batches of {ports[0].shape[0]} only. Pass --batch {ports[0].shape[0]}.")
    generator = np.random.default_rng(0)
    return [port.random(_sizes(path, port, batch, shape), generator) for port in ports]


def _sizes(path: Path, port: FileInput, batch: int, shape: Sequence[int] | None) -> list[int]:
    """The sizes that the file fixes, the batch, and the example's for the rest."""
    example = shape or port.example
    if example is None:
        example = [size or 0 for size in port.shape]
    wanted = [batch, *example[1:]] if port.is_batched else list(example)
    if not port.takes(wanted):
        raise DataError(f"{path} takes {port}, which --input-shape {','.join(map(str, example))} does not fit.")
    if 0 in wanted:
        raise DataError(f"{path} takes {port}: sizes are free besides the batch. Pass --input-shape.")
    return wanted
