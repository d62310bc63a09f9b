# SPDX-License-Identifier: Apache-2.0
"""Concrete shapes for every node of a captured graph."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from djpq_nncf.capture._inputs import InputSpec
from djpq_nncf.capture._names import layer_name
from djpq_nncf.errors import CaptureError

INPUTS_KEY = "djpq_inputs"
DTYPE_KEY = "djpq_dtype"


class FakeInterpreter(fx.Interpreter):
    """Runs a graph on fake tensors: shapes and dtypes are computed, values are not."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.mode = FakeTensorMode()
        self._fakes: dict[int, Tensor] = {}

    def run_on(self, specs: tuple[InputSpec, ...]) -> Any:
        device = module_device(self.module)
        dtypes = _converted_dtypes(self.module)
        with self.mode, torch.no_grad(), eval_mode(self.module):
            inputs = [
                spec.value
                if spec.dtype is None
                else torch.empty(spec.shape, dtype=dtypes.get(spec.dtype, spec.dtype), device=device)
                for spec in specs
            ]
            return self.run(*inputs, enable_io_processing=False)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self._fake(value) if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        tensors = [*module.named_parameters(), *module.named_buffers()]
        state = {name: self._fake(tensor) for name, tensor in tensors}
        return torch.func.functional_call(module, state, args, kwargs)

    def _fake(self, tensor: Tensor) -> Tensor:
        key = id(tensor)
        if key not in self._fakes:
            self._fakes[key] = self.mode.from_tensor(tensor)
        return self._fakes[key]


def propagate_shapes(gm: fx.GraphModule) -> None:
    """Recompute ``node.meta["val"]`` of every node from ``gm.meta["djpq_inputs"]``.

    Values are ``FakeTensor`` with concrete shapes, Python numbers, or tuples of these. Call it after a pass
    that changed parameters, constants or nodes.

    Raises:
        CaptureError: an operator does not accept the shapes that reach it.
    """
    for node, value in run_fake(gm, gm.meta[INPUTS_KEY]).env.items():
        node.meta["val"] = value


def free_dims(gm: fx.GraphModule) -> dict[str, frozenset[int]]:
    """Name of each node with one tensor value -> its dimensions whose size depends on the batch or a dynamic size."""
    specs: tuple[InputSpec, ...] = gm.meta[INPUTS_KEY]
    try:
        values = run_fake(gm, tuple(_other_sizes(spec, vary_all=True) for spec in specs)).env
    except CaptureError:  # a network may refuse sizes that are not of its own choosing
        values = run_fake(gm, tuple(_other_sizes(spec, vary_all=False) for spec in specs)).env
    return {
        node.name: frozenset(
            dim
            for dim, (one, other) in enumerate(zip(node.meta["val"].shape, value.shape, strict=True))
            if one != other
        )
        for node, value in values.items()
        if isinstance(value, Tensor)
    }


def _other_sizes(spec: InputSpec, *, vary_all: bool) -> InputSpec:
    shape = list(spec.shape)
    if spec.batched and shape:
        shape[0] *= 2
    for dim in spec.dynamic.dims if vary_all else ():
        others = [size for size in spec.dynamic.nearby(shape[dim]) if size != shape[dim]]
        shape[dim] = max(others, default=shape[dim])
    return replace(spec, shape=tuple(shape))


def run_fake(gm: fx.GraphModule, specs: tuple[InputSpec, ...]) -> FakeInterpreter:
    """The interpreter after a run; ``env`` has the fake value of every node."""
    interpreter = FakeInterpreter(gm)
    try:
        interpreter.run_on(specs)
    except Exception as error:
        # Operators raise whatever they like on shapes that do not fit.
        node = next((n for n in gm.graph.nodes if n not in interpreter.env), None)
        where = f"'{layer_name(node)}' ({node.target})" if node is not None else "the graph"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CaptureError(
            f"Shapes cannot be computed at {where}: {reason}. They must follow from the shapes of the inputs "
            "and parameters alone."
        ) from error
    return interpreter


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Shapes do not depend on the mode, but BatchNorm with momentum=None reads values in train mode."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def module_device(gm: nn.Module) -> torch.device:
    """Device of the parameters; the CPU for a model without any."""
    for tensor in (*gm.parameters(), *gm.buffers()):
        return tensor.device
    return torch.device("cpu")


def parameter_dtype(gm: nn.Module) -> torch.dtype | None:
    """The floating-point type of the first parameter."""
    return next((p.dtype for p in gm.parameters() if p.is_floating_point()), None)


def _converted_dtypes(gm: nn.Module) -> dict[torch.dtype, torch.dtype]:
    """Inputs follow a model that was converted with ``.to(dtype)`` after its capture."""
    captured = getattr(gm, "meta", {}).get(DTYPE_KEY)
    now = parameter_dtype(gm)
    return {captured: now} if captured is not None and now is not None else {}
