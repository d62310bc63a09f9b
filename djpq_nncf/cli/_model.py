# SPDX-License-Identifier: Apache-2.0
"""From what a user types to a network and to the shape of its input."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from djpq_nncf.algorithms._data import Inputs, dynamic_from_config, example_from_config
from djpq_nncf.capture import DynamicDims
from djpq_nncf.config import InputInfo, closest
from djpq_nncf.errors import CaptureError, DataError

_FORMS = "Write package.module:factory, torchvision:resnet18, or an exported .xml or .onnx file."


def is_file(name: str) -> bool:
    """Does ``name`` stand for an exported file instead of a network?"""
    return Path(name).suffix in (".xml", ".onnx")


def load_model(name: str) -> nn.Module:
    """The network that ``package.module:factory`` makes, or torchvision's network of that name without weights.

    Raises:
        CaptureError: there is no such module or factory, or it raises, or it returns something else.
    """
    module, separator, factory = name.partition(":")
    if not (module and separator and factory):
        raise CaptureError(f"MODEL is '{name}'. {_FORMS}")
    if module == "torchvision":
        return _from_torchvision(factory)
    return _call(_find(module, factory), name)


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


def _from_torchvision(name: str) -> nn.Module:
    from torchvision import models

    names = models.list_models()
    if name not in names:
        near = closest(name, names)
        raise CaptureError(
            f"torchvision has no model '{name}'."
            + (f" Did you mean '{near}'?" if near else "")
            + " torchvision.models.list_models() names all."
        )
    network: nn.Module = models.get_model(name, weights=None)
    return network


def _find(module: str, factory: str) -> Any:
    # a console script does not search the folder it is called from
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(f"Importing '{module}'", error) from error
        raise CaptureError(
            f"There is no Python module '{error.name}', neither installed nor in {os.getcwd()}. {_FORMS}"  # noqa: PTH109
        ) from error
    except Exception as error:
        # a user's module may raise anything
        raise _failed(f"Importing '{module}'", error) from error
    try:
        for part in factory.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        near = closest(factory, [entry for entry in vars(importlib.import_module(module)) if entry[0] != "_"])
        hint = f" Did you mean '{near}'?" if near else ""
        raise CaptureError(f"The module '{module}' has no '{factory}'.{hint}") from error
    return found


def _call(factory: Any, name: str) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise CaptureError(f"'{name}' is a {type(factory).__name__}. Name a function or class that makes the network.")
    try:
        network = factory()
    except Exception as error:
        # a user's factory may raise anything
        raise _failed(f"'{name}', called without arguments,", error) from error
    if not isinstance(network, nn.Module):
        raise CaptureError(f"'{name}' returned a {type(network).__name__}, not a torch.nn.Module.")
    return network


def _failed(what: str, error: Exception) -> CaptureError:
    return CaptureError(f"{what} raised {type(error).__name__}: {error}. Mend it there, and try again.")
