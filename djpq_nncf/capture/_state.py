# SPDX-License-Identifier: Apache-2.0
"""Carries parameters, buffers and constants of the original model into a GraphModule."""

import copy
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from djpq_nncf.errors import CaptureError

CAPTURED_KEY = "djpq_captured"
CONSTANTS = "_constants"
_REGISTERED = {"_parameters", "_buffers", "_modules"}


class CapturedGraph(fx.GraphModule):
    """A GraphModule whose ``state_dict()`` has the same keys after pickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        restore, arguments = super().__reduce__()
        return _unpickle, (restore, arguments, set(self.state_dict()))


def _unpickle(restore: Any, arguments: Any, keys: set[str]) -> fx.GraphModule:
    gm: fx.GraphModule = restore(*arguments)
    # tracing anew, it keeps what does not depend on the input as buffers of its own
    gm._non_persistent_buffers_set.update(name for name in gm._buffers if name not in keys)
    return gm


def copy_model(model: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """A copy with tensors of its own, or with the same parameters.

    Other than ``copy.deepcopy`` it takes modules that keep a tensor computed from parameters (weight norm, caches).

    Raises:
        CaptureError: something in the model cannot be copied.
    """
    memo: dict[int, Any] = {id(p): p for p in model.parameters()} if share_parameters else {}
    for module in model.modules():
        kept = {name: value for name, value in vars(module).items() if name not in _REGISTERED}
        for leaf in pytree.tree_leaves(kept):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        # Custom __deepcopy__ methods raise whatever they like.
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): it has to support "
            "copy.deepcopy."
        ) from error


def refuse_reserved_names(model: nn.Module) -> None:
    """Raise a CaptureError if a name of ``model`` cannot be used in a GraphModule."""
    empty = CapturedGraph(nn.Module(), fx.Graph())
    for name in (*model._parameters, *model._buffers, *model._modules):
        if name == CONSTANTS or hasattr(empty, name):
            raise CaptureError(
                f"{type(model).__name__} has an attribute '{name}', a name which a captured graph needs for "
                "itself: rename it."
            )


def skeleton(model: nn.Module) -> fx.GraphModule:
    """An empty GraphModule with the module tree, parameters, buffers and training flags of ``model``.

    The modules are plain containers: only the graph computes. Tensors are shared with ``model``, modules and
    tensors that have several names keep them all.
    """
    gm = CapturedGraph(nn.Module(), fx.Graph())
    gm.training = model.training
    _carry_tensors(model, gm)
    copies: dict[int, nn.Module] = {id(model): gm}
    for path, module in model.named_modules(remove_duplicate=False):
        if not path:
            continue
        parent_path, _, name = path.rpartition(".")
        if id(module) not in copies:
            copies[id(module)] = _container(module)
        gm.get_submodule(parent_path).add_module(name, copies[id(module)])
    return gm


def add_constant(gm: fx.GraphModule, name: str, value: Tensor) -> str:
    """Keep a tensor that is in no state_dict, where it clashes with no name of the model; returns its path."""
    if CONSTANTS not in gm._modules:
        gm.add_module(CONSTANTS, nn.Module())
    holder = gm.get_submodule(CONSTANTS)
    attribute = name.replace(".", "_")
    if attribute not in holder._buffers:
        holder.register_buffer(attribute, value.detach(), persistent=False)
    return f"{CONSTANTS}.{attribute}"


def add_module(gm: fx.GraphModule, owner: str, name: str, module: nn.Module) -> str:
    """Put ``module`` below ``owner`` under ``name``, or ``name_2``, ...; returns its path."""
    parent = gm.get_submodule(owner)
    free, number = name, 1
    while hasattr(parent, free):
        number += 1
        free = f"{name}_{number}"
    module.training = parent.training
    parent.add_module(free, module)
    return f"{owner}.{free}" if owner else free


def replace_module(gm: fx.GraphModule, path: str, module: nn.Module) -> None:
    """Put ``module`` at ``path`` and under every other name of the container there, with its children."""
    old = gm.get_submodule(path)
    for name, child in old._modules.items():
        module.add_module(name, child)
    module.training = old.training
    for parent in list(gm.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = module


def _container(module: nn.Module) -> nn.Module:
    container = nn.Module()
    container.training = module.training
    _carry_tensors(module, container)
    return container


def _carry_tensors(source: nn.Module, target: nn.Module) -> None:
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
