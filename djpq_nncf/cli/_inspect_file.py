# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf inspect`` of an exported file: what it costs, and where it comes from."""

import json
from pathlib import Path

from djpq_nncf.cost import FLOAT_BITS, FileCost, recount
from djpq_nncf.export import LayerProvenance, Provenance, read_provenance
from djpq_nncf.report import render_table


def inspect_file(path: Path) -> str:
    """Costs counted from the file, and the provenance stored in it, as text.

    Raises:
        ExportError: the file is missing or damaged.
    """
    provenance, cost = read_provenance(path), recount(path)
    sections = [_summary(path, cost, provenance), _layers(cost)]
    if provenance is not None and provenance.layers:
        sections.append(_channels(provenance.layers))
    if provenance is not None and provenance.config is not None:
        sections.append("Config, with every default\n" + json.dumps(provenance.config, indent=2))
    return "\n\n".join(sections)


def _summary(path: Path, cost: FileCost, provenance: Provenance | None) -> str:
    baseline = cost.macs * FLOAT_BITS**2
    if provenance is None:
        origin = "unknown: it was not written by djpq_nncf"
    else:
        origin = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    rows = {
        "file": str(path),
        "written by": origin,
        "MACs per sample": f"{cost.macs:,}",
        "BOPs per sample": f"{cost.bops:,} ({cost.bops / max(1, baseline):.2%} of those in {FLOAT_BITS} bits)",
    }
    width = max(map(len, rows)) + 2
    return "\n".join(f"{key:{width}}{value}" for key, value in rows.items())


def _layers(cost: FileCost) -> str:
    rows = [
        (layer.name, layer.operator, _bits(layer.weight_bits), _bits(layer.activation_bits), f"{layer.macs / 1e6:.3f}")
        for layer in cost.layers
    ]
    header = ("layer", "operator", "weight bits", "input bits", "MMACs")
    return "Layers, counted from the file\n" + render_table(header, rows, text_columns=(0, 1))


def _channels(layers: tuple[LayerProvenance, ...]) -> str:
    rows = [
        (
            layer.name,
            layer.operator,
            _bits(layer.weight_bits),
            "" if layer.activation_bits is None else _bits(layer.activation_bits),
            "{} of {}".format(*layer.in_channels),
            "{} of {}".format(*layer.out_channels),
        )
        for layer in layers
    ]
    header = ("layer", "operator", "weight bits", "input bits", "input channels", "output channels")
    return "Compression, as the file says\n" + render_table(header, rows, text_columns=(0, 1))


def _bits(bits: int) -> str:
    return "FP32" if bits == FLOAT_BITS else str(bits)
