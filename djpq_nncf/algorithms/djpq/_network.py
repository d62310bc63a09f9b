# SPDX-License-Identifier: Apache-2.0
"""A captured graph with gates and quantizers in it, and everything known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch.fx import GraphModule, Node

from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.algorithms.djpq._statistics import DJPQStatistics, EmbeddingStatistics, LayerStatistics
from djpq_nncf.channels import ChannelAnalysis, kept_mask
from djpq_nncf.cost import FLOAT_BITS, CostModel, MacOperator
from djpq_nncf.errors import DataError
from djpq_nncf.nn import ActivationQuantizer, Gate, WeightQuantizer, signed_levels
from djpq_nncf.passes import Placement, kept_channels

_BEYOND_THE_LARGEST = 1e-5
"""Share by which a tightened range exceeds the largest weight: on its very edge a rounding error would decide whether
the derivative there goes to the weight or to the range."""


@dataclass(frozen=True)
class CompressedNetwork:
    """What insertion made.

    Attributes:
        model: the compressed graph.
        analysis: channel groups and labels.
        operators: layers and products whose MACs count.
        embeddings: tables that are looked up.
        placement: where quantizers are.
        cost: costs as functions of channels and bits.
        gates: by group name.
        weight_quantizers: by the state-dict name of the weight.
        activation_quantizers: by name.
    """

    model: GraphModule
    analysis: ChannelAnalysis
    operators: tuple[MacOperator, ...]
    embeddings: tuple[MacOperator, ...]
    placement: Placement
    cost: CostModel
    gates: Mapping[str, Gate]
    weight_quantizers: Mapping[str, WeightQuantizer]
    activation_quantizers: Mapping[str, ActivationQuantizer]

    def bit_widths(self) -> BitWidths:
        """The quantizers of each operator."""
        return BitWidths(
            self.operators,
            self.weight_quantizers,
            self.activation_quantizers,
            self.placement.inputs_of,
            self.placement.second_input_of,
            self.embeddings,
        )

    @torch.no_grad()
    def fold_gates(self) -> None:
        """Move the gates' means into the weights they act on; what stays of a gate is its mask."""
        for name in {point.parameter for point in self.analysis.gate_points}:
            self._tensor(name).copy_(self.gated_weight(name))
        for gate in self.gates.values():
            gate.mu.fill_(1.0)

    def check_finite(self) -> None:
        """Raise DataError if the training diverged."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DataError(
                    f"Parameter '{name}' holds NaN or infinity: the training diverged. Lower the learning rate, or "
                    '"compression_lr_multiplier" in the config, and resume from an earlier checkpoint.'
                )

    @torch.no_grad()
    def tighten_weight_ranges(self) -> None:
        """No weight range goes far beyond the largest weight: levels that nothing uses are wasted."""
        keep = kept_channels(self.analysis, self.gates)
        for name, quantizer in self.weight_quantizers.items():
            largest = self.gated_weight(name, keep).abs().max().clamp_min(1e-8)
            quantizer.limit_range_(largest * (1 + _BEYOND_THE_LARGEST))

    @torch.no_grad()
    def gated_weight(self, name: str, keep: np.ndarray | None = None) -> torch.Tensor:
        """A weight with the gates' means on it, as its quantizer sees it in eval mode; closed outputs are zero."""
        weight = self._tensor(name).detach().clone()
        keep = kept_channels(self.analysis, self.gates) if keep is None else keep
        means = torch.cat([gate.mu.detach() for gate in self.gates.values()]) if self.gates else None

        def scale(dim: int, values: torch.Tensor) -> torch.Tensor:
            return values.to(weight).reshape([-1 if d == dim else 1 for d in range(weight.dim())])

        for point in self.analysis.gate_points:
            if point.parameter == name and means is not None:
                gated = torch.cat([means, means.new_ones(1)])[torch.from_numpy(point.labels).to(means.device)]
                weight *= scale(point.dim, gated.prod(dim=1))
        for dim, ids in enumerate(self.analysis.parameter_labels.get(name, ())):
            if ids is not None:
                weight *= scale(dim, torch.from_numpy(kept_mask(ids, keep)))
        return weight

    def _tensor(self, name: str) -> torch.Tensor:
        """A parameter, or a buffer that serves as a weight."""
        path, _, attribute = name.rpartition(".")
        return getattr(self.model.get_submodule(path), attribute)

    def weight_bits_in_use(self, name: str) -> int:
        """The smallest grid that holds the codes of a frozen weight: what a file that stores them needs.

        Codes that are all multiples of a number lie on a grid that much coarser.
        """
        codes = self.weight_quantizers[name].grid_codes(self.gated_weight(name)).abs().cpu().numpy()
        largest = int(codes.max()) // max(1, int(np.gcd.reduce(codes, axis=None)))
        return next(bits for bits in range(2, FLOAT_BITS + 1) if signed_levels(bits) >= largest)

    @torch.no_grad()
    def statistics(self, bits: BitWidths, threshold: float | None) -> DJPQStatistics:
        """Cost by layer.

        Args:
            bits: quantizers of each layer.
            threshold: on alpha, below which channels count as gone; None once the decision is made.
        """
        keep = kept_channels(self.analysis, self.gates)
        if threshold is not None:
            for name, gate in self.gates.items():
                channels = self.analysis.groups[name].channels
                open_now = ~gate.below(threshold).cpu()
                if not open_now.any():
                    open_now[gate.log_alpha().argmax()] = True
                keep[channels.start : channels.stop] = open_now.numpy()
        weight_bits, activation_bits, _ = (values.tolist() for values in bits.soft())
        final = threshold is None
        layers = []
        for row, (operator, macs) in enumerate(zip(self.operators, self.cost.exact_macs(keep), strict=True)):
            inputs, outputs = self._channels(operator, macs, keep)
            layers.append(
                LayerStatistics(
                    name=operator.layer,
                    kind=operator.kind,
                    weight_bits=self._weight_bits(operator.weight, final=final) or weight_bits[row],
                    activation_bits=activation_bits[row],
                    in_channels=inputs,
                    out_channels=outputs,
                    macs=macs,
                    baseline_macs=operator.macs,
                    weights=self._weights(operator, keep),
                )
            )
        embeddings = [
            EmbeddingStatistics(
                name=table.layer,
                weight_bits=self._weight_bits(table.weight, final=final) or FLOAT_BITS,
                rows=table.weight_shape[table.input_dim],
                channels=self._kept(table, table.output_dim, keep),
            )
            for table in self.embeddings
        ]
        return DJPQStatistics(
            layers=tuple(layers),
            embeddings=tuple(embeddings),
            weight_size_ratio=self._weight_size_ratio(keep, final=final),
            frozen_channels=self.analysis.frozen,
            baseline_bops=self.cost.baseline_bops,
        )

    def _weight_bits(self, weight: str | None, *, final: bool) -> float | None:
        """Bits of a weight, once frozen those that its codes really need; None if it is not quantized."""
        if weight is None or weight not in self.weight_quantizers:
            return None
        if final:
            return float(self.weight_bits_in_use(weight))
        return float(self.weight_quantizers[weight].continuous_bits())

    def _kept(self, operator: MacOperator, dim: int, keep: np.ndarray) -> tuple[int, int]:
        """Indices of a dimension of an operator's weight: kept, of all."""
        assert operator.weight is not None
        labels = self.analysis.parameter_labels.get(operator.weight)
        ids, size = labels[dim] if labels else None, operator.weight_shape[dim]
        return size if ids is None else int(kept_mask(ids, keep).sum()), size

    def _weights(self, operator: MacOperator, keep: np.ndarray) -> tuple[int, int]:
        """Values of an operator's weight: kept, of all."""
        if operator.weight is None:
            return 0, 0
        dims = range(len(operator.weight_shape))
        return prod(self._kept(operator, dim, keep)[0] for dim in dims), prod(operator.weight_shape)

    def _channels(self, operator: MacOperator, macs: int, keep: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
        """Input and output channels, kept and of all; of a product what is summed over, and its last dimension."""
        if operator.weight is not None:
            return self._kept(operator, operator.input_dim, keep), self._kept(operator, operator.output_dim, keep)
        node = next(node for node in self.model.graph.nodes if node.name == operator.node)
        left, shape = self._remaining_shape(node, keep)
        if operator.kind == "scaled_dot_product_attention":  # two products: the width of queries, and of values
            queries = self._remaining_shape(node.all_input_nodes[0], keep)
            return (queries[0][-1], queries[1][-1]), (left[-1], shape[-1])
        batch = next(spec.shape[0] for spec in self.model.meta["djpq_inputs"] if spec.batched)
        return (macs * batch // max(1, prod(left)), operator.macs * batch // prod(shape)), (left[-1], shape[-1])

    def _remaining_shape(self, node: Node, keep: np.ndarray) -> tuple[list[int], list[int]]:
        """Shape of a value once channels are gone, and before."""
        shape = [int(size) for size in node.meta["val"].shape]
        labels = self.analysis.node_labels.get(node.name, (None,) * len(shape))
        left = [n if ids is None else int(kept_mask(ids, keep).sum()) for n, ids in zip(shape, labels, strict=True)]
        return left, shape

    def _weight_size_ratio(self, keep: np.ndarray, *, final: bool) -> float:
        """Each weight counts once, also where several layers share it."""
        remaining = total = 0.0
        for name, operator in {operator.weight: operator for operator in (*self.embeddings, *self.operators)}.items():
            if name is not None:
                kept, size = self._weights(operator, keep)
                remaining += kept * (self._weight_bits(name, final=final) or FLOAT_BITS)
                total += size * FLOAT_BITS
        return remaining / total
