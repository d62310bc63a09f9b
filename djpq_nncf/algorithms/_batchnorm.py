# SPDX-License-Identifier: Apache-2.0
"""Re-estimation of BatchNorm statistics, which any change of weights invalidates."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.algorithms._data import iterate_inputs
from djpq_nncf.algorithms._progress import track


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, data: Iterable[Any], samples: int) -> None:
    """Replace running means and variances by their average over ``samples`` samples of ``data``.

    Only BatchNorm is in training mode meanwhile. In distributed training the processes' averages are averaged. If the
    data fails, the statistics are as before.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers or samples <= 0:
        return
    training = model.training
    momenta = [layer.momentum for layer in layers]
    earlier = [copy.deepcopy(layer.state_dict()) for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    try:
        with track("Re-estimating BatchNorm", samples) as advance:
            for (args, kwargs), count in iterate_inputs(model, data, samples):
                model(*args, **kwargs)
                advance(count)
    except BaseException:
        for layer, state in zip(layers, earlier, strict=True):
            layer.load_state_dict(state)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(training)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for layer in layers:
            for statistic in (layer.running_mean, layer.running_var):
                assert statistic is not None
                torch.distributed.all_reduce(statistic)
                statistic /= torch.distributed.get_world_size()
