# SPDX-License-Identifier: Apache-2.0
"""Samples that the ranges of quantizers are taken from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from djpq_nncf.benchmark._inputs import random_inputs
from djpq_nncf.errors import DataError
from djpq_nncf.export import FileInput, read_notes

_RANDOM_SAMPLES = 32
_BATCH = 8


@dataclass(frozen=True)
class Calibration:
    """Samples for each input of a network.

    Attributes:
        source: where they come from: "random samples", "samples of images.npy".
        arrays: input -> [samples, ...], or the one value of an input without a batch dimension.
    """

    source: str
    arrays: Mapping[FileInput, NDArray[Any]]

    @property
    def count(self) -> int:
        """Number of samples."""
        return next((len(array) for port, array in self.arrays.items() if port.is_batched), 1)

    def __str__(self) -> str:
        return f"{self.count} {self.source}"

    def batches(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Small batches by input name."""
        for start in range(0, self.count, _BATCH):
            yield {
                port.name: array[start : start + _BATCH] if port.is_batched else array
                for port, array in self.arrays.items()
            }


def random_calibration(exported: Path, shape: tuple[int, ...] | None) -> Calibration:
    """Noise for the inputs of a network that was exported: INT8 is as fast as with real data, not as accurate."""
    arrays = random_inputs(exported, _RANDOM_SAMPLES, shape)
    return Calibration("random samples", dict(zip(read_notes(exported).inputs, arrays, strict=True)))


def read_calibration(path: Path, exported: Path) -> Calibration:
    """Samples in a .npy file for the only input of a network, or in a .npz file for each input by its name.

    Raises:
        DataError: the file cannot be read, or does not fit the network in the file ``exported``.
    """
    ports = read_notes(exported).inputs
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {ports[0].name: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read ({error}). Give --calibration a .npy or .npz file.") from error
    if set(arrays) != {port.name for port in ports}:
        names = [port.name for port in ports]
        raise DataError(f"'{path}' should be a .npz file with an array for each input of the network: {names}.")
    for port in ports:
        array = arrays[port.name]
        if not array.size or not port.takes(array.shape):
            raise DataError(f"'{path}' holds an array of shape {list(array.shape)}; the network takes {port}.")
    if len({len(arrays[port.name]) for port in ports if port.is_batched}) > 1:
        raise DataError(f"'{path}' holds arrays with different numbers of samples.")
    return Calibration(f"samples of {path.name}", {port: arrays[port.name].astype(port.dtype) for port in ports})
