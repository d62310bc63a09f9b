# SPDX-License-Identifier: Apache-2.0
"""What a model under DJPQ costs, layer by layer."""

from dataclasses import dataclass

from djpq_nncf.channels import FrozenChannels
from djpq_nncf.export import LayerProvenance
from djpq_nncf.report import render_table


@dataclass(frozen=True)
class LayerStatistics:
    """One convolution, linear layer or product of two activations.

    Attributes:
        name: module path; of a product with the operator behind it.
        kind: operator ("conv2d", "linear", "matmul").
        weight_bits, activation_bits: of its weight and of its input, of a product's second and first factor;
            fractional while they are learned, 32 for float.
        in_channels, out_channels: channels kept and of all, of the weight's input and output dimension; of a product
            what is summed over, and the last dimension of its output.
        macs, baseline_macs: multiply-accumulates per sample, now and of the original.
        weights: number of values of its weight, kept and of all; of a product none.
    """

    name: str
    kind: str
    weight_bits: float
    activation_bits: float
    in_channels: tuple[int, int]
    out_channels: tuple[int, int]
    macs: int
    baseline_macs: int
    weights: tuple[int, int]

    @property
    def bops(self) -> float:
        """Bit operations per sample (16)."""
        return self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class EmbeddingStatistics:
    """One table that is looked up: it takes room and costs no MACs.

    Attributes:
        name: module path.
        weight_bits: fractional while they are learned, 32 for float.
        rows: number of entries.
        channels: width of an entry, kept and of all.
    """

    name: str
    weight_bits: float
    rows: int
    channels: tuple[int, int]


@dataclass(frozen=True)
class DJPQStatistics:
    """Totals over all layers; a ratio is always compressed / original.

    Attributes:
        layers: every layer and every product that counts.
        embeddings: the tables besides; one that a layer has for its weight is among both.
        weight_size_ratio: bits of the weights of layers and embeddings / 32 bits times their original number.
        frozen_channels: output channels that had to stay, wholly or in one respect, with the reason.
        baseline_bops: BOPs of the original with 32-bit weights and activations.
    """

    layers: tuple[LayerStatistics, ...]
    embeddings: tuple[EmbeddingStatistics, ...]
    weight_size_ratio: float
    frozen_channels: tuple[FrozenChannels, ...]
    baseline_bops: int

    @property
    def bops(self) -> float:
        """Bit operations per sample."""
        return sum(layer.bops for layer in self.layers)

    @property
    def bops_ratio(self) -> float:
        """BOPs / BOPs of the 32-bit original."""
        return self.bops / self.baseline_bops

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_ratio(self) -> float:
        """MACs / MACs of the original."""
        return self.macs / max(1, sum(layer.baseline_macs for layer in self.layers))

    @property
    def ratios(self) -> dict[str, float]:
        """By the key of ``target`` that asks for it."""
        return {"bops_ratio": self.bops_ratio, "macs_ratio": self.macs_ratio, "size_ratio": self.weight_size_ratio}

    def provenance(self) -> tuple[LayerProvenance, ...]:
        """What an exported file says about its layers; for bit-widths that are integers, after the freeze."""
        layers = [
            LayerProvenance(
                layer.name,
                layer.kind,
                int(layer.weight_bits),
                int(layer.activation_bits),
                layer.in_channels,
                layer.out_channels,
            )
            for layer in self.layers
        ]
        embeddings = [
            LayerProvenance(
                entry.name, "embedding", int(entry.weight_bits), None, (entry.rows, entry.rows), entry.channels
            )
            for entry in self.embeddings
        ]
        return (*layers, *embeddings)

    def to_str(self) -> str:
        """A table of the layers, the totals, and what could not be pruned."""
        rows = [
            (
                layer.name,
                layer.kind,
                _bits(layer.weight_bits),
                _bits(layer.activation_bits),
                "{}/{}".format(*layer.in_channels),
                "{}/{}".format(*layer.out_channels),
                f"{layer.macs / 1e6:.2f}",
                f"{layer.bops / max(self.bops, 1):.1%}",
            )
            for layer in self.layers
        ]
        table = render_table(
            ("layer", "operator", "weight bits", "input bits", "in kept", "out kept", "MMACs", "of BOPs"),
            rows,
        )
        if self.embeddings:
            entries = [
                (entry.name, _bits(entry.weight_bits), str(entry.rows), "{}/{}".format(*entry.channels))
                for entry in self.embeddings
            ]
            table += "\n\n" + render_table(("embedding", "weight bits", "rows", "channels kept"), entries)
        totals = (
            f"BOPs {_ratio(self.bops_ratio)}, MACs {_ratio(self.macs_ratio)}, weights {_ratio(self.weight_size_ratio)}"
        )
        frozen = [f"  {entry}" for entry in self.frozen_channels]
        return "\n".join([table, totals, *(["Not prunable:", *frozen] if frozen else [])])


@dataclass(frozen=True)
class NNCFStatistics:
    """Statistics by algorithm, as NNCF has them."""

    djpq: DJPQStatistics

    def to_str(self) -> str:
        """The algorithms' statistics as text."""
        return self.djpq.to_str()


def _bits(bits: float) -> str:
    return f"{bits:.0f}" if bits == int(bits) else f"{bits:.1f}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.5f} of the original ({1 / ratio:.1f}x fewer)" if ratio > 0 else "0"
