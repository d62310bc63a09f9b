# SPDX-License-Identifier: Apache-2.0
"""Where an exported file comes from: stored in it as metadata, and read back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import fx

from djpq_nncf.cost._recount import damaged
from djpq_nncf.export._notes import read_notes

_VERSIONS, _CONFIG, _LAYERS = "versions", "config", "layers"
_META = "djpq_provenance"
_PACKAGES = ("djpq_nncf", "torch", "nncf")


@dataclass(frozen=True)
class LayerProvenance:
    """How one layer was compressed.

    Attributes:
        name: module path; of a product of activations with the operator behind it.
        operator: "conv2d", "linear", "matmul", "embedding", ...
        weight_bits, activation_bits: bit-widths of its weight and of its input (of a product's second and first
            factor), 32 for float; an embedding has no activation to quantize (None).
        in_channels, out_channels: channels kept and of all.
    """

    name: str
    operator: str
    weight_bits: int
    activation_bits: int | None
    in_channels: tuple[int, int]
    out_channels: tuple[int, int]


@dataclass(frozen=True)
class Provenance:
    """What an exported file says about itself.

    Attributes:
        versions: package -> version of what wrote the file.
        config: what the network was compressed with, every default filled in, as ``NNCFConfig.from_dict`` takes it
            (without ``log_dir``); None where the network was exported as it was.
        layers: bits and channels of each layer; empty where the network was exported as it was.
    """

    versions: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    layers: tuple[LayerProvenance, ...] = ()


def note_config(model: fx.GraphModule, settings: Mapping[str, Any]) -> None:
    """Let a graph, and what passes make of it, remember the config that it is compressed with."""
    # a folder of the machine says nothing about the network
    _remember(model, _CONFIG, {key: value for key, value in settings.items() if key != "log_dir"})


def note_layers(model: fx.GraphModule, layers: Sequence[LayerProvenance]) -> None:
    """Let a stripped graph remember the bits and channels of its layers."""
    _remember(model, _LAYERS, [asdict(layer) for layer in layers])


def config_of(model: fx.GraphModule) -> Mapping[str, Any] | None:
    """The config that a graph remembers, every default filled in; None if it was not compressed."""
    config: Mapping[str, Any] | None = model.meta.get(_META, {}).get(_CONFIG)
    return config


def package_versions(*runtimes: str) -> dict[str, str]:
    """Of this package, those it stands on, and the runtimes."""
    return {name: version(name) for name in (*_PACKAGES, *runtimes)}


def provenance_notes(model: fx.GraphModule, *runtimes: str) -> dict[str, str]:
    """What to store in a file, as JSON texts: the same for the same network."""
    versions = package_versions(*runtimes)
    notes = {_VERSIONS: versions, **model.meta.get(_META, {})}
    return {key: json.dumps(value) for key, value in notes.items()}


def _remember(model: fx.GraphModule, key: str, value: Any) -> None:
    model.meta[_META] = {**model.meta.get(_META, {}), key: value}


def read_provenance(path: str | Path) -> Provenance | None:
    """Read back what ``export_model`` stored in a ``.xml`` or ``.onnx`` file.

    Args:
        path: the exported file.

    Returns:
        None for a file that something else wrote.

    Raises:
        ExportError: the file is missing or damaged, or is neither OpenVINO IR nor ONNX.

    Example:
        >>> read_provenance("model.onnx").config["target_device"]  # doctest: +SKIP
        'ANY'
    """
    path = Path(path)
    texts = read_notes(path).texts
    if _VERSIONS not in texts:
        return None
    try:
        found = {key: json.loads(texts[key]) for key in (_VERSIONS, _CONFIG, _LAYERS) if key in texts}
        layers = tuple(
            LayerProvenance(**{**entry, **{key: tuple(entry[key]) for key in ("in_channels", "out_channels")}})
            for entry in found.get(_LAYERS, ())
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return Provenance(found[_VERSIONS], found.get(_CONFIG), layers)
