# SPDX-License-Identifier: Apache-2.0
"""Puts back what is random in train mode and not there in eval mode: stochastic depth, attention dropout."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from djpq_nncf.capture._names import module_path
from djpq_nncf.capture._state import add_module, replace_module
from djpq_nncf.capture._train_mode import TrainBehaviour, is_random

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_DROPOUT_P = [argument.name for argument in _ATTENTION._schema.arguments].index("dropout_p")


class TrainOnly(_DropoutNd):
    """A module that returns its input as it is in eval mode, and something random in train mode.

    It is a dropout to whoever reads the graph.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The module's, which follows ``train()`` and ``eval()`` by itself."""
        result: Tensor = self.module(x)
        return result

    def extra_repr(self) -> str:
        return ""


class AttentionDropout(nn.Module):
    """Gives ``scaled_dot_product_attention`` its dropout probability: ``p`` in train mode, 0 in eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self) -> float:
        """The probability, a plain number."""
        return self.p if self.training else 0.0

    def extra_repr(self) -> str:
        return f"p={self.p}"


@torch.library.custom_op("djpq_nncf::train_only", mutates_args=())
def _train_only(x: Tensor) -> Tensor:
    """Marks where a module that does nothing in eval mode stood."""
    return x.clone()


@_train_only.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@contextlib.contextmanager
def marked(model: nn.Module, behaviour: TrainBehaviour) -> Iterator[None]:
    """While ``model`` is exported, leave a mark in the graph for each module that :class:`TrainOnly` can hold."""

    def mark(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if len(args) == 1 and output is args[0] and isinstance(output, Tensor):
            return torch.ops.djpq_nncf.train_only(output)
        return None

    handles = [model.get_submodule(path).register_forward_hook(mark) for path in _simple(model, behaviour.random)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def restore_train_only(gm: fx.GraphModule, original: nn.Module) -> set[str]:
    """Marks -> ``call_module`` of :class:`TrainOnly`; returns the paths of their modules."""
    placed: dict[int, str] = {}
    found: set[str] = set()
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.djpq_nncf.train_only.default, sort=True):
        path = module_path(node)
        found.add(path)
        module = original.get_submodule(path)
        if id(module) not in placed:
            replace_module(gm, path, TrainOnly(copy.deepcopy(module)))
            placed[id(module)] = path
        node.op, node.target = "call_module", placed[id(module)]
    return found


def restore_attention_dropouts(gm: fx.GraphModule, behaviour: TrainBehaviour) -> None:
    """Let the dropout of attention follow train and eval mode.

    Where the graph does not have exactly the attentions that were seen in train mode, it is left as it is.
    """
    nodes: dict[str, list[fx.Node]] = {}
    for node in gm.graph.find_nodes(op="call_function", target=_ATTENTION, sort=True):
        nodes.setdefault(module_path(node), []).append(node)
    for path, probabilities in behaviour.attention.items():
        attentions = nodes.get(path, [])
        if len(attentions) != len(probabilities):
            continue
        for node, p in zip(attentions, probabilities, strict=True):
            if p and not _dropout_of(node):
                _set_dropout(gm, node, add_module(gm, path, "attention_dropout", AttentionDropout(p)))


def paths_in(graph: fx.Graph) -> set[str]:
    """Paths of the modules that have operators in the graph, and of all around them."""
    paths = {""}
    for node in graph.nodes:
        path = module_path(node)
        while path:
            paths.add(path)
            path = path.rpartition(".")[0]
    return paths


def random_paths(graph: fx.Graph) -> set[str]:
    """Paths of the modules with operators in the graph that draw random numbers."""
    return {module_path(node) for node in graph.nodes if is_random(node.target, node.args, node.kwargs)}


def _simple(model: nn.Module, paths: set[str]) -> list[str]:
    """Modules without anything to train or remember: their behaviour is in their code alone.

    Dropout is not among them: it is an operator of the graph.
    """
    modules = [(path, model.get_submodule(path)) for path in sorted(paths) if path]
    return [path for path, m in modules if not (isinstance(m, _DropoutNd) or m._parameters or m._buffers or m._modules)]


def _dropout_of(node: fx.Node) -> Any:
    return node.args[_DROPOUT_P] if len(node.args) > _DROPOUT_P else node.kwargs.get("dropout_p", 0.0)


def _set_dropout(gm: fx.GraphModule, node: fx.Node, path: str) -> None:
    with gm.graph.inserting_before(node):
        call = gm.graph.call_module(path)
    call.meta = {key: value for key, value in node.meta.items() if key != "val"}
    if len(node.args) > _DROPOUT_P:
        node.update_arg(_DROPOUT_P, call)
    else:
        node.update_kwarg("dropout_p", call)
