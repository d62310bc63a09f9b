# SPDX-License-Identifier: Apache-2.0
"""The FX pass that removes closed channels, and with them every gate."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from djpq_nncf.capture import propagate_shapes
from djpq_nncf.channels import ChannelAnalysis, Removal, find_rewrite, kept_indices
from djpq_nncf.nn import ActivationQuantizer, Gate, GatedWeight, OpenChannels, Slot, WeightQuantizer
from djpq_nncf.passes._names import CONTAINER
from djpq_nncf.passes._regather import gather_torn_values

QUANTIZERS = "quantizers"
"""Top-level submodule of a stripped model that holds its frozen quantizers."""


def kept_channels(analysis: ChannelAnalysis, gates: Mapping[str, Gate]) -> np.ndarray:
    """[channels] boolean over the channel ids of the analysis: which gates are open."""
    keep = np.ones(analysis.channel_count, dtype=bool)
    for name, gate in gates.items():
        channels = analysis.groups[name].channels
        keep[channels.start : channels.stop] = gate.open.cpu().numpy()
    return keep


@torch.no_grad()
def remove(model: GraphModule, analysis: ChannelAnalysis, keep: np.ndarray) -> GraphModule:
    """A smaller copy of a compressed graph that computes the same in eval mode.

    Gate means are folded into the weights they act on, weights are rounded to their grid, quantizers are frozen,
    and parameters, buffers and the constants that depend on their sizes lose the channels that ``keep`` leaves out.

    Args:
        model: a compressed graph whose quantizers, if it has any, have fixed bits.
        analysis: the channel groups of the graph that was compressed.
        keep: [channels] boolean over the channel ids of the analysis.

    Returns:
        A captured graph without gates, in eval mode.
    """
    model = copy.deepcopy(model).eval()
    _fold_gates(model)
    _freeze_quantizers(model)
    model.graph.eliminate_dead_code()
    _restore_operators(model)
    delattr(model, CONTAINER)
    removal = Removal(analysis, keep)
    _slice_parameters(model, removal)
    for node in list(model.graph.nodes):
        rewrite = find_rewrite(node) if node.op in ("call_function", "call_module") else None
        if rewrite is not None:
            rewrite(node, removal)
    gather_torn_values(model, removal)
    model.graph.lint()
    model.recompile()
    propagate_shapes(model)
    return model


def _modules(model: GraphModule, *kinds: type[nn.Module]) -> list[tuple[Node, nn.Module]]:
    calls = [node for node in model.graph.nodes if node.op == "call_module"]
    pairs = [(node, model.get_submodule(str(node.target))) for node in calls]
    return [(node, module) for node, module in pairs if isinstance(module, kinds)]


def _fold_gates(model: GraphModule) -> None:
    for node, module in _modules(model, GatedWeight, WeightQuantizer):
        weight, *scales = (source for source in node.args if isinstance(source, Node))
        if scales:
            tensor = _get_tensor(model, str(weight.target))
            assert tensor is not None
            values = [_evaluate(model, scale) for scale in scales]
            _set_parameter(model, str(weight.target), GatedWeight()(tensor, *values))
            node.args = (weight,)
        if isinstance(module, GatedWeight):
            node.replace_all_uses_with(weight)
            model.graph.erase_node(node)


def _evaluate(model: GraphModule, scale: Node) -> Tensor:
    """What gates compute without any input: themselves, their place along a weight, products of such."""
    values = [_evaluate(model, source) for source in scale.all_input_nodes]
    function = model.get_submodule(str(scale.target)) if scale.op == "call_module" else scale.target
    result: Tensor = function(*values)  # type: ignore[operator]
    return result


def _restore_operators(model: GraphModule) -> None:
    """What ran on open channels runs on all that there are."""
    for node, module in _modules(model, OpenChannels):
        assert isinstance(module, OpenChannels)
        sources = node.args
        node.op, node.target = "call_function", module.operator
        node.args = tree_map_only(Slot, lambda slot: sources[slot.position], module.arguments)  # noqa: B023
        node.kwargs = tree_map_only(Slot, lambda slot: sources[slot.position], module.keywords)  # noqa: B023


def _freeze_quantizers(model: GraphModule) -> None:
    frozen: dict[int, str] = {}
    for node, module in _modules(model, WeightQuantizer, ActivationQuantizer):
        assert isinstance(module, WeightQuantizer | ActivationQuantizer)
        if isinstance(module, WeightQuantizer):
            weight = node.args[0]
            assert isinstance(weight, Node)
            name = str(weight.target)
            _set_parameter(model, name, module.quantized(model.get_parameter(name)))
        if id(module) not in frozen:
            if not hasattr(model, QUANTIZERS):
                model.add_module(QUANTIZERS, nn.Module())
            frozen[id(module)] = str(node.target).replace(f"{CONTAINER}.", f"{QUANTIZERS}.", 1)
            model.add_submodule(frozen[id(module)], module.freeze())
        node.target = frozen[id(module)]


def _slice_parameters(model: GraphModule, removal: Removal) -> None:
    sliced: dict[str, Tensor] = {}
    for name, labels in removal.analysis.parameter_labels.items():
        tensor = _get_tensor(model, name)
        if tensor is None:  # removed with dead code
            continue
        smaller = tensor
        for dim, ids in enumerate(labels):
            if ids is not None and (kept := kept_indices(ids, removal.keep)).size < ids.size:
                smaller = smaller.index_select(dim, torch.from_numpy(kept).to(smaller.device))
        if smaller is not tensor:
            sliced[name] = smaller
    _set_parameters(model, sliced)


def _get_tensor(model: GraphModule, name: str) -> Tensor | None:
    path, _, attribute = name.rpartition(".")
    try:
        return getattr(model.get_submodule(path), attribute)
    except AttributeError:
        return None


def _set_parameter(model: GraphModule, name: str, value: Tensor) -> None:
    _set_parameters(model, {name: value})


def _set_parameters(model: GraphModule, values: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers; tied ones (other names of the same tensor) follow and stay tied."""
    new: dict[int, Tensor] = {}
    for name, value in values.items():
        old = _get_tensor(model, name)
        assert old is not None
        copied = value.detach().clone()
        new[id(old)] = (
            nn.Parameter(copied, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else copied
        )
    for module in model.modules():
        pools: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in pools:
            for key, tensor in tensors.items():
                if id(tensor) in new:
                    tensors[key] = new[id(tensor)]
