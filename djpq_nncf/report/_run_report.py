# SPDX-License-Identifier: Apache-2.0
"""What the report of a compressed network shows, as plain data that JSON can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from djpq_nncf.errors import DataError

FORMAT = 1
_FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerFigures:
    """One layer before and after.

    Attributes:
        name: module path.
        kind: operator.
        weight_bits, activation_bits: of its weight and its input; 32 for float, and None where it has none.
        in_channels, out_channels: kept, and of all.
        macs, baseline_macs: multiply-accumulates per sample, after and before.
        weights: number of weights, kept and of all.
    """

    name: str
    kind: str
    weight_bits: float
    activation_bits: float | None
    in_channels: tuple[int, int]
    out_channels: tuple[int, int]
    macs: int
    baseline_macs: int
    weights: tuple[int, int]

    @property
    def bops(self) -> float:
        """Bit operations per sample, after."""
        return self.macs * self.weight_bits * (self.activation_bits or 0)

    @property
    def baseline_bops(self) -> float:
        """Bit operations per sample, before."""
        return float(self.baseline_macs * _FLOAT_BITS**2)

    @property
    def size(self) -> float:
        """Bits of the weights, after."""
        return self.weights[0] * self.weight_bits

    @property
    def baseline_size(self) -> float:
        """Bits of the weights, before."""
        return float(self.weights[1] * _FLOAT_BITS)


@dataclass(frozen=True)
class GroupFigures:
    """Channels that go together.

    Attributes:
        name: of the group.
        role: what the channels are.
        kept: how many stay.
        size: of all.
        made_by, read_by: layers.
    """

    name: str
    role: str
    kept: int
    size: int
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]


@dataclass(frozen=True)
class FrozenFigures:
    """Channels that had to stay, and why."""

    layer: str
    what: str
    reason: str


@dataclass(frozen=True)
class FileCheck:
    """How an exported file compares with PyTorch; see `djpq_nncf.export.ExportVerification`."""

    file: str
    runtime: str
    samples: int
    max_abs_difference: float
    max_relative_difference: float
    top1_agreement: float | None
    int8_mac_share: float
    not_int8: tuple[str, ...]


@dataclass(frozen=True)
class RunReport:
    """Everything the report shows besides the course of the training.

    Attributes:
        title: above the page.
        stage: how far the compression has come.
        ratios: compressed / original, by the keys of ``target``.
        asked: likewise what the config asks for.
        layers: convolutions, linear layers, products of activations, and embeddings.
        groups: of channels.
        frozen: channels that had to stay.
        checks: of the exported files.
        config: with every default filled in.
        versions: of the packages.
    """

    title: str
    stage: str
    ratios: Mapping[str, float]
    asked: Mapping[str, float]
    layers: tuple[LayerFigures, ...]
    groups: tuple[GroupFigures, ...]
    frozen: tuple[FrozenFigures, ...]
    checks: tuple[FileCheck, ...]
    config: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any) -> "RunReport":
        """What :meth:`to_dict` returned, also after JSON.

        Raises:
            DataError: it is something else, or of another version.
        """
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise DataError(
                f"The data of the report has format {found!r}, and this version of djpq-nncf reads {FORMAT}. Draw it "
                "with the version that wrote it."
            )
        parts = {"layers": LayerFigures, "groups": GroupFigures, "frozen": FrozenFigures, "checks": FileCheck}
        try:
            values = {field.name: data[field.name] for field in fields(cls)}
            for name, kind in parts.items():
                values[name] = tuple(_entry(kind, entry) for entry in values[name])
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"The data of the report is damaged: {error}. Write it again.") from error
        return cls(**values)


def _entry(kind: Any, entry: Mapping[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})


def total(layers: Sequence[LayerFigures], name: str) -> float:
    """Sum of a figure over all layers."""
    return float(sum(getattr(layer, name) for layer in layers))
