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
        embeddings: tables besides, which cost room only.

    Attributes:
        weights: names of the weights of all of them, each once, in a fixed order ("weight" below indexes it).
    """

    def __init__(
        self, operators: Sequence[MacOperator], analysis: ChannelAnalysis, embeddings: Sequence[MacOperator] = ()
    ) -> None:
        self.operators = tuple(operators)
        self.group_names = tuple(analysis.groups)
        earlier = Counter[str]()
        labels = []
        for operator in self.operators:
            labels.append(_mac_labels(operator, analysis, earlier[operator.node]))
            earlier[operator.node] += 1
        self._macs = _Amounts([operator.macs for operator in self.operators], labels, analysis)
        shapes = {op.weight: op.weight_shape for op in (*embeddings, *self.operators) if op.weight is not None}
        self.weights = tuple(shapes)
        self._sizes = _Amounts(
            [prod(shape) for shape in shapes.values()],
            [[ids for ids in analysis.parameter_labels.get(name, ()) if ids is not None] for name in shapes],
            analysis,
        )

    @property
    def baseline_macs(self) -> int:
        """MACs per sample of the original network."""
        return sum(self._macs.full)

    @property
    def baseline_bops(self) -> int:
        """BOPs per sample of the original network with 32-bit weights and activations."""
        return self.baseline_macs * FLOAT_BITS * FLOAT_BITS

    @property
    def baseline_size(self) -> int:
        """Bits of the original network's weights, at 32 bits each."""
        return sum(self._sizes.full) * FLOAT_BITS

    @property
    def prunable_share(self) -> float:
        """Share of the MACs in which at least one removable channel takes part."""
        fixed = [
            macs * prod(float((ids == FIXED).all(axis=1).mean()) for ids in labels)
            for macs, labels in zip(self._macs.full, self._macs.labels, strict=True)
        ]
        return 1 - sum(fixed) / self.baseline_macs

    def soft_macs(self, kept_shares: Tensor) -> Tensor:
        """MACs per layer (15), differentiable.

        Args:
            kept_shares: [groups] share of each group's channels that is kept, in the order of ``group_names``.

        Returns:
            [layers] MACs per sample.
        """
        return self._macs.soft(kept_shares)

    def soft_bops(self, kept_shares: Tensor, weight_bits: Tensor, activation_bits: Tensor) -> Tensor:
        """BOPs per layer (16), differentiable: [layers] MACs times weight bits times input activation bits."""
        return self.soft_macs(kept_shares) * weight_bits * activation_bits

    def soft_sizes(self, kept_shares: Tensor) -> Tensor:
        """[weights] number of values, differentiable."""
        return self._sizes.soft(kept_shares)

    def group_shares(self, layer_costs: Tensor) -> Tensor:
        """[groups] share of a cost given per layer that each group's channels take part in.

        What removing the whole group would save at most: the weight that makes a gate's penalty follow the cost.
        """
        return self._macs.group_shares(layer_costs)

    def group_shares_of_size(self, weight_costs: Tensor) -> Tensor:
        """As `group_shares`, of a cost given per weight."""
        return self._sizes.group_shares(weight_costs)

    def exact_macs(self, keep: np.ndarray) -> list[int]:
        """MACs per sample of each layer once channels are removed.

        Args:
            keep: [channels] boolean, which channels of the analysis remain.
        """
        return self._macs.exact(keep)

    def exact_sizes(self, keep: np.ndarray) -> list[int]:
        """Number of values of each weight once channels are removed."""
        return self._sizes.exact(keep)


class _Amounts:
    """Amounts that are proportional to the share of the channels that remain, along each of some dimensions.

    Args:
        full: [rows] amounts while every channel is there.
        labels: for each row those of its dimensions.
        analysis: whose channels they are.
    """

    def __init__(self, full: Sequence[int], labels: Sequence[Sequence[Labels]], analysis: ChannelAnalysis) -> None:
        self.full = tuple(full)
        self.labels = tuple(labels)
        column = {name: index for index, name in enumerate(analysis.groups)}
        width = max((ids.shape[1] for dims in labels for ids in dims), default=1)
        group_of = np.array([column[name] for name in analysis.channel_group] + [len(column)])  # the last is for FIXED
        terms: list[tuple[int, int, float, list[int]]] = []
        for row, dims in enumerate(labels):
            for factor, ids in enumerate(dims):
                combinations, counts = np.unique(np.sort(group_of[ids], axis=1), axis=0, return_counts=True)
                for combination, count in zip(combinations.tolist(), counts.tolist(), strict=True):
                    padding = [len(column)] * (width - len(combination))
                    terms.append((factor, row, count / len(ids), combination + padding))
        self._group_count = len(column)
        self._factors = max((len(dims) for dims in labels), default=0)
        self._place = torch.tensor([[term[0] * len(self.full) + term[1]] for term in terms]).reshape(-1)
        self._fraction = torch.tensor([term[2] for term in terms])
        self._groups = torch.tensor([term[3] for term in terms], dtype=torch.long).reshape(-1, width)
        self._full = torch.tensor([float(amount) for amount in full])

    def soft(self, kept_shares: Tensor) -> Tensor:
        """[groups] shares -> [rows] amounts, differentiable."""
        device = kept_shares.device
        extended = torch.cat([kept_shares, kept_shares.new_ones(1)])
        terms = self._fraction.to(kept_shares) * extended[self._groups.to(device)].prod(dim=1)
        kept = terms.new_zeros(self._factors * len(self.full)).index_add(0, self._place.to(device), terms)
        listed = torch.zeros(len(kept), dtype=torch.bool, device=device)
        listed[self._place.to(device)] = True
        kept = torch.where(listed, kept, 1.0)
        return self._full.to(kept_shares) * kept.reshape(self._factors, -1).prod(dim=0)

    def exact(self, keep: np.ndarray) -> list[int]:
        """[channels] boolean -> [rows] amounts."""
        result = []
        for amount, dims in zip(self.full, self.labels, strict=True):
            for ids in dims:
                amount = amount * int(kept_mask(ids, keep).sum()) // len(ids)
            result.append(amount)
        return result

    def group_shares(self, costs: Tensor) -> Tensor:
        """[rows] costs -> [groups] share of them that the channels of each group take part in."""
        costs = costs / costs.sum()
        row = self._place.to(costs.device) % len(self.full)
        shares = self._fraction.to(costs) * costs[row]
        result = costs.new_zeros(self._group_count + 1)
        for groups in self._groups.to(costs.device).T:
            result = result.index_add(0, groups, shares)
        return result[:-1]


def _mac_labels(operator: MacOperator, analysis: ChannelAnalysis, product: int) -> list[Labels]:
    """Labels whose remaining shares multiply to the remaining share of an operator's MACs.

    ``product`` counts the operators of one node: attention multiplies twice.
    """
    products = analysis.products.get(operator.node)
    return [ids for ids in products[product] if ids is not None] if products else []
