# SPDX-License-Identifier: Apache-2.0
"""MACs and BOPs as functions of kept channels and bit-widths, equations (14) to (16)."""

from collections import Counter
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from djpq_nncf.channels import FIXED, ChannelAnalysis, Labels, kept_mask
from djpq_nncf.cost._operators import MacOperator

FLOAT_BITS = 32


class CostModel:
    """Cost of a network's convolutions, linear layers and products of activations.

    A layer's MACs are proportional to the share of rows and of columns of its weight that remain
    (equation 15; a depthwise layer's weight has one column, so that its channels count once), those of a product to
    the shares along the dimensions of its operands.

    Args:
        operators: the layers, in a fixed order ("layer" below indexes it).
        analysis: says which channel group lives where in each weight.
    """

    def __init__(self, operators: Sequence[MacOperator], analysis: ChannelAnalysis) -> None:
        self.operators = tuple(operators)
        self.group_names = tuple(analysis.groups)
        column = {name: index for index, name in enumerate(self.group_names)}
        earlier = Counter[str]()
        self._labels = []
        for operator in self.operators:
            self._labels.append(_mac_labels(operator, analysis, earlier[operator.node]))
            earlier[operator.node] += 1
        width = max((ids.shape[1] for labels in self._labels for ids in labels), default=1)
        group_of = np.array([column[name] for name in analysis.channel_group] + [len(column)])  # the last is for FIXED
        rows: list[tuple[int, int, float, list[int]]] = []
        for layer, labels in enumerate(self._labels):
            for factor, ids in enumerate(labels):
                combinations, counts = np.unique(np.sort(group_of[ids], axis=1), axis=0, return_counts=True)
                for combination, count in zip(combinations.tolist(), counts.tolist(), strict=True):
                    padding = [len(column)] * (width - len(combination))
                    rows.append((factor, layer, count / len(ids), combination + padding))
        self._factors = max((len(labels) for labels in self._labels), default=0)
        self._place = torch.tensor([[row[0] * len(self.operators) + row[1]] for row in rows]).reshape(-1)
        self._fraction = torch.tensor([row[2] for row in rows])
        self._groups = torch.tensor([row[3] for row in rows], dtype=torch.long).reshape(-1, width)
        self._full_macs = torch.tensor([float(operator.macs) for operator in self.operators])

    @property
    def baseline_macs(self) -> int:
        """MACs per sample of the original network."""
        return sum(operator.macs for operator in self.operators)

    @property
    def baseline_bops(self) -> int:
        """BOPs per sample of the original network with 32-bit weights and activations."""
        return self.baseline_macs * FLOAT_BITS * FLOAT_BITS

    @property
    def prunable_share(self) -> float:
        """Share of the MACs in which at least one removable channel takes part."""
        fixed = [
            operator.macs * prod(float((ids == FIXED).all(axis=1).mean()) for ids in labels)
            for operator, labels in zip(self.operators, self._labels, strict=True)
        ]
        return 1 - sum(fixed) / self.baseline_macs

    def soft_macs(self, kept_shares: Tensor) -> Tensor:
        """MACs per layer (15), differentiable.

        Args:
            kept_shares: [groups] share of each group's channels that is kept, in the order of ``group_names``.

        Returns:
            [layers] MACs per sample.
        """
        device = kept_shares.device
        extended = torch.cat([kept_shares, kept_shares.new_ones(1)])
        terms = self._fraction.to(kept_shares) * extended[self._groups.to(device)].prod(dim=1)
        kept = terms.new_zeros(self._factors * len(self.operators)).index_add(0, self._place.to(device), terms)
        listed = torch.zeros(len(kept), dtype=torch.bool, device=device)
        listed[self._place.to(device)] = True
        kept = torch.where(listed, kept, 1.0)
        return self._full_macs.to(kept_shares) * kept.reshape(self._factors, -1).prod(dim=0)

    def soft_bops(self, kept_shares: Tensor, weight_bits: Tensor, activation_bits: Tensor) -> Tensor:
        """BOPs per layer (16), differentiable: [layers] MACs times weight bits times input activation bits."""
        return self.soft_macs(kept_shares) * weight_bits * activation_bits

    def group_shares(self, layer_costs: Tensor) -> Tensor:
        """[groups] share of a cost given per layer that each group's channels take part in.

        What removing the whole group would save at most: the weight that makes a gate's penalty follow the cost.
        """
        costs = layer_costs / layer_costs.sum()
        layer = self._place.to(costs.device) % len(self.operators)
        shares = self._fraction.to(costs) * costs[layer]
        result = costs.new_zeros(len(self.group_names) + 1)
        for groups in self._groups.to(costs.device).T:
            result = result.index_add(0, groups, shares)
        return result[:-1]

    def exact_macs(self, keep: np.ndarray) -> list[int]:
        """MACs per sample of each layer once channels are removed.

        Args:
            keep: [channels] boolean, which channels of the analysis remain.
        """
        result = []
        for operator, labels in zip(self.operators, self._labels, strict=True):
            macs = operator.macs
            for ids in labels:
                macs = macs * int(kept_mask(ids, keep).sum()) // len(ids)
            result.append(macs)
        return result


def _mac_labels(operator: MacOperator, analysis: ChannelAnalysis, product: int) -> list[Labels]:
    """Labels whose remaining shares multiply to the remaining share of an operator's MACs.

    ``product`` counts the operators of one node: attention multiplies twice.
    """
    products = analysis.products.get(operator.node)
    return [ids for ids in products[product] if ids is not None] if products else []
