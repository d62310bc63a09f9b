# SPDX-License-Identifier: Apache-2.0
"""Watches one forward pass in train mode, to know what a graph captured in eval mode does not show."""

import contextlib
import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from djpq_nncf.capture._inputs import Example
from djpq_nncf.capture._state import copy_model
from djpq_nncf.capture._tracking import ModuleTracker

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@dataclass
class TrainBehaviour:
    """What a forward pass in train mode did.

    Args:
        active: paths of the modules that ran and returned something else than their first input.
        random: paths of the modules whose own forward() drew random numbers.
        attention: path of a module -> dropout probability of each attention it computed, in order.
        updated: paths of the modules whose buffers it changed, BatchNorm aside.
        batch_norms: running mean (its name) -> did it normalise with the statistics of the batch?
        failure: why the pass failed, if it did.
    """

    active: set[str] = field(default_factory=set)
    random: set[str] = field(default_factory=set)
    attention: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    updated: set[str] = field(default_factory=set)
    batch_norms: dict[str, bool] = field(default_factory=dict)
    failure: str | None = None

    def is_frozen(self, running_mean: str | None) -> bool:
        """The statistics called ``running_mean`` are used as they are, in train mode too."""
        return running_mean is not None and self.batch_norms.get(running_mean) is False


def watch_train_mode(model: nn.Module, example: Example) -> TrainBehaviour:
    """Run ``model`` in train mode on the example; on a copy that shares only the parameters."""
    behaviour = TrainBehaviour()
    probe = copy_model(model, share_parameters=True).train()
    args, kwargs = copy.deepcopy((example.args, example.kwargs))
    before = _versions(probe)
    tracker = ModuleTracker(probe)
    watch = _OperatorWatch(probe, tracker, behaviour)
    with torch.no_grad(), warnings.catch_warnings(), tracker, watch, _watch_attention(tracker, behaviour):
        # The user sees the same warnings in training.
        warnings.simplefilter("ignore")
        try:
            probe(*args, **kwargs)
        except Exception as error:
            # The model is the user's: anything may come out of it.
            behaviour.failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    behaviour.active = tracker.active
    changed = {name.rpartition(".")[0] for name, version in _versions(probe).items() if before.get(name) != version}
    behaviour.updated = changed - {name.rpartition(".")[0] for name in behaviour.batch_norms}
    return behaviour


def warn_of_train_only(
    model: nn.Module, active: set[str], restored: set[str], behaviour: TrainBehaviour, stacklevel: int
) -> None:
    """Name the modules that work in train mode only (auxiliary heads, layers that are skipped at random).

    Args:
        model: as it was captured.
        active: paths of the modules that did something in eval mode, or what stands for them in the graph.
        restored: paths of the modules whose own random numbers are drawn by the graph.
        behaviour: of the model in train mode.
        stacklevel: of the caller, as ``warnings.warn`` takes it.
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
    lost = _outermost((behaviour.active - active) | (behaviour.random - restored) | behaviour.updated)
    if lost:
        listed = ", ".join(f"{path or '(root)'} ({type(model.get_submodule(path)).__name__})" for path in lost)
        warnings.warn(
            f"{name} was captured in eval mode: what these modules do only in train mode is not in the graph "
            f"and will not take part in training: {listed}.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def is_random(operation: Any, args: Any, kwargs: Any) -> bool:
    """Does this call draw random numbers? Attention does if ``dropout_p`` is not zero, an LSTM if ``train``."""
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    switches = {"dropout_p", "train"} & {argument.name for argument in operation._schema.arguments}
    values = _named(operation, args, kwargs)
    if switches and not any(values.get(switch) for switch in switches):
        return False
    return torch.Tag.nondeterministic_seeded in operation.tags


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Which tensor each buffer is, and how often it was written to."""
    return {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()}


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
        if is_random(func, args, kwargs):
            self._behaviour.random.add(self._tracker.path)
        return func(*args, **kwargs)


@contextlib.contextmanager
def _watch_attention(tracker: ModuleTracker, behaviour: TrainBehaviour) -> Iterator[None]:
    """Note the dropout of each attention; its operator is taken apart before a dispatch mode could see it."""
    original = F.scaled_dot_product_attention

    def noted(*args: Any, **kwargs: Any) -> Any:
        p = _named(_ATTENTION, args, kwargs).get("dropout_p", 0.0)
        behaviour.attention[tracker.path].append(float(p))
        return original(*args, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", noted):
        yield
