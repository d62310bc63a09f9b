# SPDX-License-Identifier: Apache-2.0
"""Runs torch.export with a dynamic batch."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError, UserErrorType
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.fx.experimental.symbolic_shapes import (
    ConstraintViolationError,
    GuardOnDataDependentSymNode,
    is_concrete_int,
)

from djpq_nncf.capture._inputs import Example, InputSpec, doubled
from djpq_nncf.capture._quiet import quiet_export
from djpq_nncf.capture._tracking import ModuleTracker
from djpq_nncf.errors import CaptureError

_MAX_REASON = 300


def settle_batch(model: nn.Module, example: Example) -> Example:
    """Run the model once on the example, and return one whose batch is at least two."""
    _run(model, example)
    if example.batch > 1:
        return example
    failure: CaptureError | None = None
    for candidate in doubled(example):
        try:
            _run(model, candidate)
        except CaptureError as error:
            failure = failure or error
        else:
            return candidate
    raise CaptureError(
        f"{type(model).__name__} runs with a batch of one but not with the same sample twice. "
        "Pass example inputs with a batch of two or more."
    ) from failure


def export_model(model: nn.Module, example: Example) -> tuple[ExportedProgram, tuple[InputSpec, ...]]:
    """Export ``model`` (in eval mode) so that it takes any batch size.

    The first attempt shares one dynamic batch between all inputs that have it. Where the model ties a
    dimension 0 to something else, the later attempts leave more of the choice to torch.export.
    """
    violation: Exception | None = None
    for dynamic in _attempts(example.batch):
        shapes = ShapesCollection()
        for leaf in example.leaves():
            dim = dynamic(leaf) if isinstance(leaf, Tensor) and leaf.dim() > 0 else None
            if dim is not None:
                shapes[leaf] = {0: dim}
        tracker = ModuleTracker(model)
        try:
            with quiet_export(), torch.enable_grad(), tracker:
                program = export(model, example.args, example.kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            # torch.export has no common base class for what it refuses.
            if not _is_constraint_violation(error):
                raise CaptureError(_failure_message(model, tracker.path, error)) from error
            violation = violation or error
            continue
        specs = _input_specs(program, example)
        if any(spec.batched for spec in specs):
            return program, specs
    raise CaptureError(
        f"{type(model).__name__} fixes the batch to {example.batch}, the batch of the example inputs: "
        f"{_first_line(violation) if violation else 'a size in forward() is a constant'}. "
        "Take the batch from the input in forward(), for example x.shape[0] or -1 in view() and reshape(), "
        "and check that the inputs are batched along dimension 0."
    ) from violation


def _attempts(batch: int) -> Iterator[Callable[[Tensor], Any]]:
    shared = Dim("batch")
    yield lambda leaf: shared if leaf.shape[0] == batch else Dim.AUTO
    yield lambda leaf: shared if leaf.shape[0] == batch else None
    yield lambda leaf: Dim.AUTO


def _run(model: nn.Module, example: Example) -> None:
    tracker = ModuleTracker(model)
    try:
        with torch.no_grad(), tracker:
            model(*example.args, **example.kwargs)
    except Exception as error:
        # The model is the user's: anything may come out of it.
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in example.leaves()]
        raise CaptureError(
            f"{type(model).__name__} fails on the example inputs (shapes {shapes})"
            f"{_at(tracker.path)}: {type(error).__name__}: {_first_line(error)}. "
            "Pass inputs the model accepts (in eval mode), on the device of the model."
        ) from error


def _input_specs(program: ExportedProgram, example: Example) -> tuple[InputSpec, ...]:
    names = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    leaves = example.leaves()
    if len(nodes) < len(leaves):
        # Constant inputs (numbers, None) are listed by value, not by name.
        nodes = [n for n in program.graph.nodes if n.op == "placeholder"][-len(leaves) :]
    specs = []
    for node, leaf in zip(nodes, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            specs.append(InputSpec(node.name, (), None, batched=False, value=leaf))
            continue
        dim = node.meta["val"].shape[0] if leaf.dim() > 0 else 0
        # A SymInt may have been specialised to a constant.
        batched = not is_concrete_int(dim) and leaf.shape[0] == example.batch
        specs.append(InputSpec(node.name, tuple(leaf.shape), leaf.dtype, batched=batched))
    return tuple(specs)


def _is_constraint_violation(error: Exception) -> bool:
    if isinstance(error, UserError):
        return error.error_type is UserErrorType.CONSTRAINT_VIOLATION
    return isinstance(error, ConstraintViolationError)


def _failure_message(model: nn.Module, path: str, error: Exception) -> str:
    if isinstance(error, GuardOnDataDependentSymNode):
        reason = "the Python code branches on, or sizes a tensor by, values of a tensor"
        line = _user_line(error)
        reason += f" ({line})" if line else ""
        remedy = "Replace the branch by torch.where or tensor arithmetic, or move it out of the model."
    else:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        remedy = "Use only tensor operations in forward(): no NumPy, no I/O, no conversion to Python values."
    return f"{type(model).__name__} cannot be captured as a graph{_at(path)}: {reason}. {remedy}"


def _at(path: str) -> str:
    return f" in module '{path}'" if path else ""


def _user_line(error: Exception) -> str:
    """The statement of forward() which torch.export blames, if its message has it."""
    lines = str(error).splitlines()
    for previous, line in itertools.pairwise(lines):
        if previous.lstrip().startswith('File "') and ", in " in previous:
            return line.strip()
    return ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Constraints violated") and len(lines) > 1:
        return lines[1].split(". ")[0]
    return lines[0][:_MAX_REASON].rstrip(". ")
