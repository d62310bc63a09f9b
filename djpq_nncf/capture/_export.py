# SPDX-License-Identifier: Apache-2.0
"""Runs torch.export with a dynamic batch."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import UserError, UserErrorType
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.fx.experimental.symbolic_shapes import (
    ConstraintViolationError,
    GuardOnDataDependentSymNode,
    is_concrete_int,
)
from torch.utils import _pytree as pytree

from djpq_nncf.capture._inputs import Example, InputSpec, doubled, register_dataclasses
from djpq_nncf.capture._quiet import quiet_export
from djpq_nncf.capture._sizes import DynamicSizes
from djpq_nncf.capture._tracking import ModuleTracker
from djpq_nncf.errors import CaptureError

_MAX_REASON = 300


@dataclass(frozen=True)
class Exported:
    """What torch.export made of a model.

    Args:
        program: its graph.
        specs: one for each flattened input.
        sizes: of the dynamic dimensions.
        active: paths of the modules that ran and returned something else than their first input.
    """

    program: ExportedProgram
    specs: tuple[InputSpec, ...]
    sizes: DynamicSizes
    active: set[str]


def settle_batch(model: nn.Module, example: Example) -> Example:
    """Run the model once on the example, and return one whose batch is at least two."""
    _check_output(model, _run(model, example))
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


def export_model(model: nn.Module, example: Example) -> Exported:
    """Export ``model`` (in eval mode) so that it takes any batch size, and other sizes where they are dynamic.

    The first attempt shares one dynamic batch between all inputs that have it. Where the model ties a
    dimension 0 to something else, the later attempts leave more of the choice to torch.export.
    """
    violation: Exception | None = None
    for dynamic in _attempts(example.batch):
        shapes = ShapesCollection()
        for leaf, others in zip(example.leaves(), example.dynamic, strict=True):
            dim = dynamic(leaf) if isinstance(leaf, Tensor) and leaf.dim() > 0 else None
            dims = {} if dim is None else {0: dim}
            if dims or others.dims:
                shapes[leaf] = dims | dict.fromkeys(others.dims, Dim.AUTO)
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
        nodes = _inputs_of(program, example)
        specs = _input_specs(nodes, example)
        if any(spec.batched for spec in specs):
            sizes = DynamicSizes(nodes, example)
            sizes.refuse_limits(type(model).__name__)
            return Exported(program, specs, sizes, tracker.active)
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


def _run(model: nn.Module, example: Example) -> Any:
    tracker = ModuleTracker(model)
    try:
        with torch.no_grad(), tracker:
            return model(*example.args, **example.kwargs)
    except Exception as error:
        # The model is the user's: anything may come out of it.
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in example.leaves()]
        raise CaptureError(
            f"{type(model).__name__} fails on the example inputs (shapes {shapes})"
            f"{_at(tracker.path)}: {type(error).__name__}: {_first_line(error)}. "
            "Pass inputs the model accepts (in eval mode), on the device of the model."
        ) from error


def _check_output(model: nn.Module, output: Any) -> None:
    register_dataclasses(output)
    for leaf in pytree.tree_leaves(output):
        if not isinstance(leaf, (Tensor, bool, int, float, str, type(None))):
            has_cache = getattr(getattr(model, "config", None), "use_cache", False)
            raise CaptureError(
                f"{type(model).__name__} returns a {type(leaf).__name__}, which cannot be the output of a graph. "
                + ("Set use_cache=False in its config." if has_cache else "")
                + ("" if has_cache else "Return tensors, in tuples, lists, dicts or dataclasses.")
            )


def _inputs_of(program: ExportedProgram, example: Example) -> list[fx.Node]:
    """The placeholders of the leaves of the example."""
    # The signature lists constant inputs (numbers, None) by value, not by name.
    return [n for n in program.graph.nodes if n.op == "placeholder"][-len(example.leaves()) :]


def _input_specs(nodes: list[fx.Node], example: Example) -> tuple[InputSpec, ...]:
    specs = []
    for node, leaf, dynamic in zip(nodes, example.leaves(), example.dynamic, strict=True):
        if not isinstance(leaf, Tensor):
            specs.append(InputSpec(node.name, (), None, batched=False, value=leaf))
            continue
        dim = node.meta["val"].shape[0] if leaf.dim() > 0 else 0
        # A SymInt may have been specialised to a constant.
        batched = not is_concrete_int(dim) and leaf.shape[0] == example.batch
        specs.append(InputSpec(node.name, tuple(leaf.shape), leaf.dtype, batched=batched, dynamic=dynamic))
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
