# SPDX-License-Identifier: Apache-2.0
"""How much of a network can be removed: shares of its parameters and of its multiply-accumulates."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from djpq_nncf.algorithms.djpq import CompressedNetwork
from djpq_nncf.channels import ChannelAnalysis
from djpq_nncf.passes import CONTAINER
from tests.zoo.registry import Example


@dataclass(frozen=True)
class Shares:
    """What can go.

    Attributes:
        parameters: number of parameters.
        prunable_parameters: share of them in a slice that may be removed.
        macs: of layers (convolutions, linear layers) for one sample.
        prunable_macs: share of ``macs`` whose weights lie in a row or column that may be removed.
        product_macs: of products of activations (attention) for one sample.
    """

    parameters: int
    prunable_parameters: float
    macs: int
    prunable_macs: float
    product_macs: int


def shares_of(network: CompressedNetwork) -> Shares:
    """Shares of a network with gates; MACs are those of the input size it was captured with."""
    tensors = dict(network.model.named_parameters(remove_duplicate=False))
    names = {name: id(tensor) for name, tensor in tensors.items() if not name.startswith(CONTAINER)}
    sizes = {id(tensor): tensor.numel() for tensor in tensors.values() if id(tensor) in names.values()}
    prunable: dict[int, float] = dict.fromkeys(sizes, 0.0)
    for name, tensor in names.items():  # a tied weight has labels under one of its names
        prunable[tensor] = max(prunable[tensor], _prunable_share(network.analysis, name))
    layers = [operator for operator in network.operators if operator.weight is not None]
    macs = sum(layer.macs for layer in layers)
    return Shares(
        parameters=sum(sizes.values()),
        prunable_parameters=sum(sizes[tensor] * share for tensor, share in prunable.items()) / sum(sizes.values()),
        macs=macs,
        prunable_macs=sum(layer.macs * prunable[names[str(layer.weight)]] for layer in layers) / macs,
        product_macs=sum(operator.macs for operator in network.operators if operator.weight is None),
    )


def _prunable_share(analysis: ChannelAnalysis, name: str) -> float:
    """Share of a parameter's elements with a removable channel along any of its dimensions."""
    stays = [
        1.0 if ids is None else 1 - float((np.asarray(ids).reshape(len(ids), -1) >= 0).any(1).mean())
        for ids in analysis.parameter_labels.get(name, ())
    ]
    return 1 - prod(stays)


def macs_by_torch(captured: GraphModule, example: Example) -> int:
    """Multiply-accumulates of one more sample, as torch counts them: what is computed once for all is left out."""
    counts = []
    for batch in (1, 2):
        args, kwargs = example.inputs(batch=batch)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            captured.eval()(*args, **kwargs)
        counts.append(counter.get_total_flops() // 2)
    return counts[1] - counts[0]
