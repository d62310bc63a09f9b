# SPDX-License-Identifier: Apache-2.0
"""Puts BatchNorm and dropout modules back where torch.export baked their eval mode into the graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from djpq_nncf.capture._names import module_label, module_path
from djpq_nncf.capture._state import add_module, replace_module
from djpq_nncf.capture._train_mode import TrainBehaviour
from djpq_nncf.errors import CaptureError

aten = torch.ops.aten

_BATCH_NORMS: dict[int, type[_BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_FEATURE_DROPOUTS: dict[int, type[_DropoutNd]] = {2: nn.Dropout1d, 3: nn.Dropout1d, 5: nn.Dropout3d}
_STATE = ("weight", "bias", "running_mean", "running_var")


def restore_batch_norms(gm: fx.GraphModule, original: nn.Module, behaviour: TrainBehaviour) -> None:
    """``aten.batch_norm.default`` -> ``call_module`` of a BatchNorm that shares the original's tensors."""
    modules = dict(original.named_modules(remove_duplicate=False))
    placed: dict[int, str] = {}
    for node in gm.graph.find_nodes(op="call_function", target=aten.batch_norm.default, sort=True):
        path = _owner(node)
        module = modules.get(path)
        if not isinstance(module, _BatchNorm):
            frozen = behaviour.is_frozen(_target(node, "running_mean"))
            if frozen:
                continue
            _check_functional(node, path, module)
        assert module is not None
        if id(module) not in placed:
            rank = node.args[0].meta["val"].dim()
            replace_module(gm, path, _make_batch_norm(node, module, gm.get_submodule(path), rank))
            placed[id(module)] = path
        _call(gm, node, placed[id(module)])


def restore_dropouts(gm: fx.GraphModule, original: nn.Module) -> set[str]:
    """Dropout operators -> ``call_module`` of dropout modules; functional ones get a module in their owner.

    Returns the paths of the original modules whose dropout was found.
    """
    modules = dict(original.named_modules(remove_duplicate=False))
    kinds: dict[Any, Callable[[int], type[_DropoutNd]]] = {
        aten.dropout.default: lambda rank: nn.Dropout,
        aten.alpha_dropout.default: lambda rank: nn.AlphaDropout,
        aten.feature_alpha_dropout.default: lambda rank: nn.FeatureAlphaDropout,
        aten.feature_dropout.default: lambda rank: _FEATURE_DROPOUTS.get(rank, nn.Dropout2d),
    }
    placed: dict[int, str] = {}
    found: set[str] = set()
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in kinds:
            continue
        source, p, always = node.args
        if always:
            # Called with training=True whatever the mode: an operator like any other, or none at p = 0.
            if p == 0:
                node.replace_all_uses_with(source)
                gm.graph.erase_node(node)
            continue
        path = module_path(node)
        found.add(path)
        module = modules.get(path)
        kind = kinds[node.target](source.meta["val"].dim())
        if isinstance(module, _DropoutNd):
            if id(module) not in placed:
                kind = next((c for c in type(module).__mro__ if c.__module__ == nn.Dropout.__module__), kind)
                replace_module(gm, path, kind(p))
                placed[id(module)] = path
            path = placed[id(module)]
        else:
            path = add_module(gm, path, "functional_dropout", kind(p))
        _call(gm, node, path)
    return found


def _owner(node: fx.Node) -> str:
    """Path of the module whose tensors a batch_norm reads; if it reads none, of the module that called it."""
    for name in ("running_mean", "weight"):
        target = _target(node, name)
        if target is not None and target.rpartition(".")[2] == name:
            return target.rpartition(".")[0]
    return module_path(node)


def _target(node: fx.Node, name: str) -> str | None:
    value = node.args[1 + _STATE.index(name)]
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _check_functional(node: fx.Node, path: str, module: nn.Module | None) -> None:
    """F.batch_norm in a module of the user's can become an nn.BatchNorm if the names of its tensors fit."""
    wanted = [None if arg is None else f"{path}.{name}" for name, arg in zip(_STATE, node.args[1:5], strict=True)]
    if module is None or not path or wanted != [_target(node, name) for name in _STATE]:
        raise CaptureError(
            f"{module_label(node)} calls batch_norm with tensors which are not the weight, bias, "
            "running_mean and running_var of one submodule, so its train mode cannot be restored. "
            "Use nn.BatchNorm1d, 2d or 3d."
        )


def _make_batch_norm(node: fx.Node, source: nn.Module, state: nn.Module, rank: int) -> nn.Module:
    features = node.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
    momentum: Any = getattr(source, "momentum", node.args[6])
    result = _BATCH_NORMS[rank](
        features,
        eps=float(node.args[7]),  # type: ignore[arg-type]
        momentum=momentum,
        affine=node.args[1] is not None,
        track_running_stats=bool(getattr(source, "track_running_stats", node.args[3] is not None)),
        device="meta",
    )
    for name in result._parameters:
        result._parameters[name] = state._parameters.get(name)
    for name in result._buffers:
        result._buffers[name] = state._buffers.get(name)
    for name, parameter in state._parameters.items():
        result.register_parameter(name, parameter)
    for name, buffer in state._buffers.items():
        result.register_buffer(name, buffer, persistent=name not in state._non_persistent_buffers_set)
    return result


def _call(gm: fx.GraphModule, node: fx.Node, path: str) -> None:
    with gm.graph.inserting_before(node):
        call = gm.graph.call_module(path, (node.args[0],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    gm.graph.erase_node(node)
