# SPDX-License-Identifier: Apache-2.0
"""MACs and BOPs as functions of kept channels and bit-widths, equations (14) to (16)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from djpq_nncf.channels import FIXED, ChannelAnalysis, kept_mask
from djpq_nncf.cost._operators import MacOperator

FLOAT_BITS = 32


class CostModel:
    """Cost of a network's convolutions and linear layers.

    A layer's MACs are proportional to the share of rows and of columns of its weight that remain
    (equation 15; a depthwise layer's weight has one column, so that its channels count once).

    Args:
        operators: the layers, in a fixed order ("layer" below indexes it).
        analysis: says which channel group lives where in each weight.
    """

    def __init__(self, operators: Sequence[MacOperator], analysis: ChannelAnalysis) -> None:
        self.operators = tuple(operators)
        self.group_names = tuple(analysis.groups)
        self._labels = [tuple(analysis.parameter_labels.get(operator.weight, ()))[:2] for operator in self.operators]
        column = {name: index for index, name in enumerate(self.group_names)}
        shares = np.zeros((2, len(self.operators), len(self.group_names)))
        fixed = np.ones((2, len(self.operators)))
        for row, labels in enumerate(self._labels):
            for dim, ids in enumerate(labels):
                if ids is None:
                    continue
                removable = ids[ids != FIXED]
                fixed[dim, row] = 1 - len(removable) / len(ids)
                names, counts = np.unique([column[analysis.channel_group[i]] for i in removable], return_counts=True)
                shares[dim, row, names.astype(int)] = counts / len(ids)
        self._shares = torch.from_numpy(shares).float()
        self._fixed = torch.from_numpy(fixed).float()
        self._full_macs = torch.tensor([float(operator.macs) for operator in self.operators])

    @property
    def baseline_macs(self) -> int:
        """MACs per sample of the original network."""
        return sum(operator.macs for operator in self.operators)

    @property
    def baseline_bops(self) -> int:
        """BOPs per sample of the original network with 32-bit weights and activations."""
        return self.baseline_macs * FLOAT_BITS * FLOAT_BITS

    def soft_macs(self, kept_shares: Tensor) -> Tensor:
        """MACs per layer (15), differentiable.

        Args:
            kept_shares: [groups] share of each group's channels that is kept, in the order of ``group_names``.

        Returns:
            [layers] MACs per sample.
        """
        shares, fixed, macs = (t.to(kept_shares.device) for t in (self._shares, self._fixed, self._full_macs))
        kept = shares @ kept_shares + fixed
        return macs * kept[0] * kept[1]

    def soft_bops(self, kept_shares: Tensor, weight_bits: Tensor, activation_bits: Tensor) -> Tensor:
        """BOPs per layer (16), differentiable: [layers] MACs times weight bits times input activation bits."""
        return self.soft_macs(kept_shares) * weight_bits * activation_bits

    def group_shares(self, layer_costs: Tensor) -> Tensor:
        """[groups] share of a cost given per layer that each group's channels take part in.

        What removing the whole group would save at most: the weight that makes a gate's penalty follow the cost.
        """
        costs = layer_costs / layer_costs.sum()
        return (self._shares.to(costs.device).sum(0) * costs[:, None]).sum(0)

    def exact_macs(self, keep: np.ndarray) -> list[int]:
        """MACs per sample of each layer once channels are removed.

        Args:
            keep: [channels] boolean, which channels of the analysis remain.
        """
        result = []
        for operator, labels in zip(self.operators, self._labels, strict=True):
            macs = operator.macs
            for ids in labels:
                if ids is not None:
                    macs = macs * int(kept_mask(ids, keep).sum()) // len(ids)
            result.append(macs)
        return result
