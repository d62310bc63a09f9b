# SPDX-License-Identifier: Apache-2.0
"""From a name that a user types to the object, the network, or the batches it stands for."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from djpq_nncf.config import closest
from djpq_nncf.errors import CaptureError, DataError, DjpqError

MODEL_FORMS = "Write package.module:factory, torchvision:resnet18, or an exported .xml or .onnx file."
_OBJECT_FORM = "Write package.module:name."


def load_model(name: str, **options: Any) -> nn.Module:
    """The network that ``package.module:factory`` makes, or torchvision's network of that name without weights.

    Args:
        name: as above.
        options: for torchvision's networks alone, such as ``num_classes``.

    Raises:
        CaptureError: there is no such module or factory, or it raises, or it returns something else.
    """
    module, separator, factory = name.partition(":")
    if not (module and separator and factory):
        raise CaptureError(f"MODEL is '{name}'. {MODEL_FORMS}")
    if module == "torchvision":
        return _from_torchvision(factory, options)
    made = _called(find_object(name, MODEL_FORMS), name)
    if not isinstance(made, nn.Module):
        raise CaptureError(f"'{name}' returned a {type(made).__name__}, not a torch.nn.Module.")
    return made


def find_object(name: str, forms: str = _OBJECT_FORM) -> Any:
    """What ``package.module:name`` names; the current folder is searched too.

    Raises:
        CaptureError: there is no such module or name in it, or importing it raises.
    """
    module, _, path = name.partition(":")
    if not (module and path):
        raise CaptureError(f"'{name}' names no module and something in it. {forms}")
    # a console script does not search the folder it is called from
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise failed(f"Importing '{module}'", error) from error
        raise CaptureError(
            f"There is no Python module '{error.name}', neither installed nor in {os.getcwd()}. {forms}"  # noqa: PTH109
        ) from error
    except Exception as error:
        # a user's module may raise anything
        raise failed(f"Importing '{module}'", error) from error
    try:
        for part in path.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        near = closest(path, [entry for entry in vars(importlib.import_module(module)) if entry[0] != "_"])
        hint = f" Did you mean '{near}'?" if near else ""
        raise CaptureError(f"The module '{module}' has no '{path}'.{hint}") from error
    return found


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict, .safetensors or what ``torch.save`` wrote of tensors alone; nothing in it is executed.

    Raises:
        DataError: the file cannot be read, or belongs to another network.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # each format has errors of its own
        raise DataError(
            f"The weights in {path} cannot be loaded: {error}. Give a state dict of this network, .safetensors or .pth."
        ) from error


def failed(what: str, error: Exception) -> CaptureError:
    """The error to raise where code of the user did."""
    return CaptureError(f"{what} raised {type(error).__name__}: {error}. Mend it there, and try again.")


def _called(factory: Any, name: str) -> Any:
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise CaptureError(f"'{name}' is a {type(factory).__name__}. Name a function or class that makes the network.")
    try:
        return factory()
    except DjpqError:
        raise
    except Exception as error:
        # a user's factory may raise anything
        raise failed(f"'{name}', called without arguments,", error) from error


def _from_torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    names = models.list_models()
    if name not in names:
        near = closest(name, names)
        raise CaptureError(
            f"torchvision has no model '{name}'."
            + (f" Did you mean '{near}'?" if near else "")
            + " torchvision.models.list_models() names all."
        )
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network
