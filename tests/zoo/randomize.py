# SPDX-License-Identifier: Apache-2.0
"""Weights and statistics under which nothing is trivially zero, one, or too small to be seen.

Fresh networks hide errors: biases are zero, layer scales are 1e-6, attention is uniform because its logits are tiny.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def randomize(model: nn.Module, run: Callable[[], object], seed: int = 0) -> None:
    """Draw every parameter anew, and set BatchNorm statistics near those of the data.

    Args:
        model: changed in place.
        run: runs the model in eval mode, so that BatchNorm sees data; deep networks would blow up without.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            _draw(name.rpartition(".")[2], parameter, id(parameter) in tables, generator)
    _calibrate([module for module in model.modules() if isinstance(module, _BatchNorm)], run, generator)


def _draw(name: str, parameter: Tensor, is_table: bool, generator: torch.Generator) -> None:
    is_matrix = sum(size > 1 for size in parameter.shape) > 1
    if name.endswith("weight") and is_matrix and not is_table:
        # The scale that keeps the variance through linear layers and ReLUs, and gives attention logits of order one.
        fan_in = parameter.shape[1:].numel()
        parameter.normal_(0, math.sqrt(2 / fan_in), generator=generator)
    elif is_matrix or name.endswith("bias"):
        # Embeddings, position tables, class tokens among other parameters; biases.
        parameter.normal_(0, 0.3, generator=generator)
    elif (name.endswith("weight") and parameter.dim() == 1) or bool((parameter == parameter.flatten()[0]).all()):
        # Scales: of norms (one or next to zero), of layers (1e-6), of global response norms (zero), temperatures.
        value = float(parameter.flatten()[0])
        scale = torch.empty_like(parameter).uniform_(0.5, 1.5, generator=generator)
        parameter.copy_(scale if abs(value) < 0.1 else scale * value)


def _calibrate(norms: list[_BatchNorm], run: Callable[[], object], generator: torch.Generator) -> None:
    """Layer by layer: each sees what the layers in front of it make of their final statistics."""

    def set_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0], [dim for dim in range(inputs[0].dim()) if dim != 1])
        # Two samples may happen to agree in a channel: dividing by their variance would let noise grow from layer
        # to layer.
        variance = (variance + 0.1 * mean.square()).clamp(min=1e-2)
        shift = torch.empty_like(mean).normal_(0, 0.3, generator=generator)
        norm.running_mean.copy_(mean + shift * variance.sqrt())
        norm.running_var.copy_(variance * torch.empty_like(mean).uniform_(0.5, 1.5, generator=generator))

    hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    if norms:
        run()
    for hook in hooks:
        hook.remove()
