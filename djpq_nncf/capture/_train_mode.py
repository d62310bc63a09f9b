# SPDX-License-Identifier: Apache-2.0
"""Watches one forward pass in train mode, to know what a graph captured in eval mode does not show."""

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from djpq_nncf.capture._inputs import Example
from djpq_nncf.capture._names import module_path
from djpq_nncf.capture._tracking import ModuleTracker


@dataclass
class TrainBehaviour:
    """What a forward pass in train mode did.

    Args:
        active: paths of the modules that ran and returned something else than their first input.
        random: paths of the modules whose own forward() drew random numbers.
        batch_norms: running mean (its name) -> did it normalise with the statistics of the batch?
        failure: why the pass failed, if it did.
    """

    active: set[str] = field(default_factory=set)
    random: set[str] = field(default_factory=set)
    batch_norms: dict[str, bool] = field(default_factory=dict)
    failure: str | None = None

    def is_frozen(self, running_mean: str | None) -> bool:
        """The statistics called ``running_mean`` are used as they are, in train mode too."""
        return running_mean is not None and self.batch_norms.get(running_mean) is False


def watch_train_mode(model: nn.Module, example: Example) -> TrainBehaviour:
    """Run ``model`` in train mode on the example; on a copy that shares only the parameters."""
    behaviour = TrainBehaviour()
    shared = {id(parameter): parameter for parameter in model.parameters()}
    probe = copy.deepcopy(model, shared).train()
    for path, module in probe.named_modules():
        module.register_forward_hook(_record_activity(behaviour, path))
    args, kwargs = copy.deepcopy((example.args, example.kwargs))
    tracker = ModuleTracker(probe)
    watch = _OperatorWatch(probe, tracker, behaviour)
    with torch.no_grad(), warnings.catch_warnings(), tracker, watch:
        # The user sees the same warnings in training.
        warnings.simplefilter("ignore")
        try:
            probe(*args, **kwargs)
        except Exception as error:
            # The model is the user's: anything may come out of it.
            behaviour.failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return behaviour


def warn_of_train_only(
    model: nn.Module, graph: fx.Graph, dropouts: set[str], behaviour: TrainBehaviour, stacklevel: int
) -> None:
    """Name the modules that work in train mode only (stochastic depth, auxiliary heads, attention dropout).

    ``dropouts`` has the paths of the modules whose dropout is in the graph.
    """
    name = type(model).__name__
    if behaviour.failure is not None:
        warnings.warn(
            f"{name} fails in train mode on the example inputs ({behaviour.failure}): it was captured as it "
            "is in eval mode; what it does only in train mode is not in the graph.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
        return
    absent = behaviour.active - _captured_paths(graph)
    lost = _outermost(absent | (behaviour.random - dropouts - _random_paths(graph)))
    if lost:
        listed = ", ".join(f"{path or '(root)'} ({type(model.get_submodule(path)).__name__})" for path in lost)
        warnings.warn(
            f"{name} was captured in eval mode: what these modules do only in train mode is not in the graph "
            f"and will not take part in training: {listed}.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def _record_activity(behaviour: TrainBehaviour, path: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # A Sequential does nothing that its children do not.
        if not isinstance(module, nn.Sequential) and (not args or output is not args[0]):
            behaviour.active.add(path)

    return hook


def _captured_paths(graph: fx.Graph) -> set[str]:
    """Paths that appear anywhere in the stacks of the graph's nodes."""
    paths = {""}
    for node in graph.nodes:
        path = module_path(node)
        while path:
            paths.add(path)
            path = path.rpartition(".")[0]
    return paths


def _random_paths(graph: fx.Graph) -> set[str]:
    return {module_path(node) for node in graph.nodes if _is_random(node.target, node.args, node.kwargs)}


def _is_random(operation: Any, args: Any, kwargs: Any) -> bool:
    """Does this call draw random numbers? Attention does if ``dropout_p`` is not zero, an LSTM if ``train``."""
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    switches = {"dropout_p", "train"} & {argument.name for argument in operation._schema.arguments}
    values = _named(operation, args, kwargs)
    if switches and not any(values.get(switch) for switch in switches):
        return False
    return torch.Tag.nondeterministic_seeded in operation.tags


def _named(operation: torch._ops.OpOverload, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [argument.name for argument in operation._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _outermost(paths: set[str]) -> list[str]:
    return sorted(p for p in paths if not any(p != other and p.startswith(f"{other}.") for other in paths))


class _OperatorWatch(TorchDispatchMode):
    """Notes where random numbers are drawn, and in which mode BatchNorm runs."""

    def __init__(self, model: nn.Module, tracker: ModuleTracker, behaviour: TrainBehaviour) -> None:
        super().__init__()
        self._names = {id(buffer): name for name, buffer in model.named_buffers()}
        self._tracker = tracker
        self._behaviour = behaviour

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        values = _named(func, args, kwargs)
        name = self._names.get(id(values.get("running_mean")))
        if name is not None:
            seen = self._behaviour.batch_norms.get(name, False)
            self._behaviour.batch_norms[name] = seen or bool(values.get("training", True))
        if _is_random(func, args, kwargs):
            self._behaviour.random.add(self._tracker.path)
        return func(*args, **kwargs)
