# SPDX-License-Identifier: Apache-2.0
"""Bias correction: quantization shifts the mean of what a layer computes, and its bias can take the shift back."""

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.algorithms._data import iterate_inputs
from djpq_nncf.algorithms._progress import track
from djpq_nncf.nn import LearnedQuantizer

aten = torch.ops.aten

_CONVOLUTIONS = {
    *(getattr(getattr(aten, f"conv{n}d"), overload) for n in (1, 2, 3) for overload in ("default", "padding")),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}
_BIAS_POSITION = {**dict.fromkeys(_CONVOLUTIONS, 2), aten.linear.default: 2, aten.addmm.default: 0}


@torch.no_grad()
def correct_biases(
    model: GraphModule, quantizers: Iterable[LearnedQuantizer], data: Iterable[Any], samples: int
) -> None:
    """Make the mean of each layer's output, by channel, what it is without quantization.

    Empirical bias correction (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
    2019), one layer after the other: a layer is measured with those before it corrected already. The shift goes into
    the running mean of a BatchNorm, else into the bias of the layer; a layer with neither keeps it. Variances stay: to
    correct them as well moves outputs further away than it brings them near.

    Args:
        model: a captured graph with quantizers in it, changed in place.
        quantizers: all of them.
        data: batches of samples; each runs through the network twice.
        samples: how much of the data to use; 0 changes nothing.

    Raises:
        DataError: the data is empty, or holds NaN or infinity. The model is as before.
    """
    quantizers = list(quantizers)
    if samples <= 0 or not quantizers:
        return
    probed, probes = _with_probes(model)
    training = model.training
    model.eval()
    try:
        with track("Correcting biases", samples) as advance:
            for (args, kwargs), count in iterate_inputs(model, data, samples):
                with ExitStack() as stack:
                    for quantizer in quantizers:
                        stack.enter_context(quantizer.observe(_ignore))
                    probed(*args, **kwargs)
                probed(*args, **kwargs)
                advance(count)
    finally:
        model.train(training)
    for place in probes:
        place.tensor.add_(place.shift().to(place.tensor), alpha=place.sign)


def _ignore(value: Tensor) -> None:
    pass


class _Probe(nn.Module):
    """Called in pairs: first with the value without quantization, then with the quantized one, whose shift it removes.

    Args:
        dim: dimension of the channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim
        self._reference: Tensor | None = None
        self.total: Tensor | float = 0.0
        self.weight = 0

    def forward(self, x: Tensor) -> Tensor:
        channels = x.movedim(self._dim, -1)
        mean = channels.flatten(0, -2).mean(0, dtype=torch.promote_types(x.dtype, torch.float32))
        if self._reference is None:
            self._reference = mean
            return x
        shift, self._reference = mean - self._reference, None
        self.total = self.total + len(x) * shift
        self.weight += len(x)
        return (channels - shift.to(x)).movedim(-1, self._dim)


@dataclass(frozen=True)
class _Place:
    """A tensor that takes shifts back, and where they are measured: several places if several layers share it."""

    tensor: Tensor
    sign: int
    probes: tuple[_Probe, ...]

    def shift(self) -> Tensor:
        totals = torch.stack([torch.as_tensor(probe.total) for probe in self.probes])
        return totals.sum(0) / sum(probe.weight for probe in self.probes)


def _with_probes(model: GraphModule) -> tuple[GraphModule, list[_Place]]:
    """The network with a probe wherever a shift can be taken back; all other modules are the model's own."""
    probed = GraphModule(model, copy.deepcopy(model.graph))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[Tensor, int, list[_Probe]]] = {}

    def add_probe(node: Node, dim: int, name: str, tensor: Tensor, sign: int) -> Node:
        probe = _Probe(dim)
        found.setdefault(name, (tensor, sign, []))[2].append(probe)
        path = f"bias_probe_{node.name}"
        probed.add_submodule(path, probe)
        with probed.graph.inserting_after(node):
            return probed.graph.call_module(path, (node,))

    for node in list(probed.graph.nodes):
        norm = _batchnorm(model, node)
        if norm is not None and norm.running_mean is not None:
            source = node.args[0]
            node.update_arg(0, add_probe(source, 1, f"{node.target}.running_mean", norm.running_mean, +1))
        bias = _bias_name(node)
        if bias in parameters and not all(_batchnorm(model, user) for user in node.users):
            probe = add_probe(node, 1 if node.target in _CONVOLUTIONS else -1, bias, parameters[bias], -1)
            node.replace_all_uses_with(probe, delete_user_cb=lambda user, probe=probe: user is not probe)
    probed.recompile()
    return probed, [_Place(tensor, sign, tuple(probes)) for tensor, sign, probes in found.values()]


def _batchnorm(model: GraphModule, node: Node) -> _BatchNorm | None:
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, _BatchNorm) else None


def _bias_name(node: Node) -> str | None:
    """Name of a layer's bias, which a gate may act on."""
    position = _BIAS_POSITION.get(node.target)
    if position is None:
        return None
    source = node.args[position] if len(node.args) > position else node.kwargs.get("bias")
    while isinstance(source, Node) and source.op == "call_module":
        source = source.args[0]
    return str(source.target) if isinstance(source, Node) and source.op == "get_attr" else None
