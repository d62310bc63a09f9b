# SPDX-License-Identifier: Apache-2.0
"""From what a user types to the shape of a network's input."""

from pathlib import Path

import torch

from djpq_nncf.algorithms._data import Inputs, dynamic_from_config, example_from_config
from djpq_nncf.capture import DynamicDims
from djpq_nncf.config import InputInfo
from djpq_nncf.errors import DataError


def is_file(name: str) -> bool:
    """Does ``name`` stand for an exported file instead of a network?"""
    return Path(name).suffix in (".xml", ".onnx")


def is_folder(name: str) -> bool:
    """Does ``name`` stand for the folder of a run instead of a network?"""
    return Path(name).is_dir()


def parse_shape(text: str) -> tuple[int, ...]:
    """``"1,3,224,224"`` as a tuple.

    Raises:
        DataError: it is something else.
    """
    parts = text.replace("x", ",").split(",")
    if len(parts) < 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise DataError(f"--input-shape is '{text}'. Write positive numbers, batch first: 1,3,224,224.")
    return tuple(int(part) for part in parts)


def find_inputs(
    infos: tuple[InputInfo, ...], shape: tuple[int, ...] | None
) -> tuple[Inputs, dict[int | str, DynamicDims] | None]:
    """Example inputs of ``shape`` or else as ``input_info`` describes them, and what ``capture`` shall leave open.

    Raises:
        DataError: neither says.
    """
    if shape is not None:
        return ((torch.rand(shape),), {}), None
    described = example_from_config(infos)
    if described is None:
        raise DataError(
            "The shape of the network's input is not known. Pass --input-shape 1,3,224,224, or write "
            '"input_info": {"sample_size": [1, 3, 224, 224]} in the config.'
        )
    return described, dynamic_from_config(infos)
