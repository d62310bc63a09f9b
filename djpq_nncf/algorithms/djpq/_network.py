# SPDX-License-Identifier: Apache-2.0
"""A captured graph with gates and quantizers in it, and everything known about it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from djpq_nncf.algorithms.djpq._bits import BitWidths
from djpq_nncf.algorithms.djpq._statistics import DJPQStatistics, LayerStatistics
from djpq_nncf.channels import ChannelAnalysis, kept_mask
from djpq_nncf.cost import FLOAT_BITS, CostModel, MacOperator
from djpq_nncf.nn import ActivationQuantizer, Gate, WeightQuantizer, signed_levels
from djpq_nncf.passes import Placement, kept_channels


@dataclass(frozen=True)
class CompressedNetwork:
    """What insertion made.

    Attributes:
        model: the compressed graph.
        analysis: channel groups and labels.
        operators: layers whose MACs count.
        placement: where quantizers are.
        cost: costs as functions of channels and bits.
        gates: by group name.
        weight_quantizers: by the state-dict name of the weight.
        activation_quantizers: by name.
    """

    model: GraphModule
    analysis: ChannelAnalysis
    operators: tuple[MacOperator, ...]
    placement: Placement
    cost: CostModel
    gates: Mapping[str, Gate]
    weight_quantizers: Mapping[str, WeightQuantizer]
    activation_quantizers: Mapping[str, ActivationQuantizer]

    def inserted_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of gates and of quantizers."""
        quantizers = [*self.weight_quantizers.values(), *self.activation_quantizers.values()]
        return {
            "gates": [p for gate in self.gates.values() for p in gate.parameters()],
            "quantizers": [p for quantizer in quantizers for p in quantizer.parameters()],
        }

    @torch.no_grad()
    def fold_gates(self) -> None:
        """Move the gates' means into the weights they act on; what stays of a gate is its mask."""
        for name in {consumer.weight for consumer in self.analysis.consumers}:
            self.model.get_parameter(name).copy_(self.gated_weight(name))
        for gate in self.gates.values():
            gate.mu.fill_(1.0)

    @torch.no_grad()
    def tighten_weight_ranges(self, keep: np.ndarray | None = None) -> None:
        """No weight range exceeds the largest weight: levels that nothing uses are wasted.

        Args:
            keep: what ``kept_channels`` returns, where it is known already.
        """
        for name, quantizer in self.weight_quantizers.items():
            largest = self.gated_weight(name, keep).abs().max().clamp_min(1e-8).log()
            quantizer.log_range.copy_(torch.minimum(quantizer.log_range, largest))
            quantizer.project_()

    @torch.no_grad()
    def gated_weight(self, name: str, keep: np.ndarray | None = None) -> torch.Tensor:
        """A weight with the gates' means on it, as its quantizer sees it in eval mode; closed outputs are zero."""
        weight = self.model.get_parameter(name).detach().clone()
        keep = kept_channels(self.analysis, self.gates) if keep is None else keep
        means = torch.cat([gate.mu.detach() for gate in self.gates.values()]) if self.gates else None
        consumed = {(consumer.weight, consumer.dim) for consumer in self.analysis.consumers}
        for dim, ids in enumerate(self.analysis.parameter_labels.get(name, ())):
            if ids is None or means is None:
                continue
            channel = torch.from_numpy(ids).clamp_min(0)
            kept = torch.from_numpy(kept_mask(ids, keep))
            scale = kept.to(weight)
            if (name, dim) in consumed:
                gated = torch.where(torch.from_numpy(ids >= 0).to(means.device), means[channel], 1.0)
                scale = scale * gated.to(weight)
            weight *= scale.reshape([-1 if d == dim else 1 for d in range(weight.dim())])
        return weight

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
        weight_bits, activation_bits = (values.tolist() for values in bits.soft())
        layers = []
        for row, (operator, macs) in enumerate(zip(self.operators, self.cost.exact_macs(keep), strict=True)):
            labels = (*self.analysis.parameter_labels.get(operator.weight, ()), None, None)[:2]
            kept = [
                (size if ids is None else int(kept_mask(ids, keep).sum()), size)
                for size, ids in zip(operator.weight_shape[:2], labels, strict=True)
            ]
            width = weight_bits[row]
            if threshold is None and operator.weight in self.weight_quantizers:
                width = float(self.weight_bits_in_use(operator.weight))
            layers.append(
                LayerStatistics(
                    name=operator.layer,
                    kind=operator.kind,
                    weight_bits=width,
                    activation_bits=activation_bits[row],
                    in_channels=kept[1],
                    out_channels=kept[0],
                    macs=macs,
                    baseline_macs=operator.macs,
                )
            )
        return DJPQStatistics(
            layers=tuple(layers),
            weight_size_ratio=self._weight_size_ratio(layers),
            frozen_channels=self.analysis.frozen,
            baseline_bops=self.cost.baseline_bops,
        )

    def _weight_size_ratio(self, layers: list[LayerStatistics]) -> float:
        sizes = [torch.Size(operator.weight_shape).numel() for operator in self.operators]
        kept = [
            size * layer.macs / layer.baseline_macs * layer.weight_bits
            for size, layer in zip(sizes, layers, strict=True)
        ]
        return sum(kept) / (sum(sizes) * FLOAT_BITS)
