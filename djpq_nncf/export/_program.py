# SPDX-License-Identifier: Apache-2.0
"""A stripped model as a torch.export program with flat, named inputs and outputs and any batch size."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from djpq_nncf.cost._recount import SHAPES_KEY
from djpq_nncf.errors import ExportError
from djpq_nncf.export._fold import fold_batchnorm
from djpq_nncf.export._markers import mark
from djpq_nncf.export._requantize import repeat_quantizers
from djpq_nncf.passes import decompose_attention


@dataclass(frozen=True)
class NamedProgram:
    """``program`` takes and returns flat tuples.

    ``shapes`` has None for the batch and other dynamic dimensions, ``example_shapes`` their sizes in the example;
    the weight markers point into ``layer_names``.
    """

    program: torch.export.ExportedProgram
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    example_shapes: tuple[tuple[int, ...], ...]
    layer_names: tuple[str, ...]


def named_program(
    model: fx.GraphModule,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    *,
    repeat: bool,
) -> NamedProgram:
    """Folds BatchNorm, replaces quantizers by markers and runs torch.export with a dynamic batch.

    Names default to the arguments of ``forward`` and to ``output`` or the keys of a returned mapping.
    ``repeat``: put a quantizer directly before every layer whose input lies on a quantizer's grid.
    """
    flat = fold_batchnorm(model).cpu()
    if "djpq_inputs" in flat.meta:  # formats know attention, but not what it does for a query that may see nothing
        flat = decompose_attention(flat)
    _concatenate_slices(flat)
    if repeat:
        repeat_quantizers(flat)
    layer_names = mark(flat)
    _drop_constant_inputs(flat)
    examples = _example_inputs(flat)
    inputs = tuple(input_names) if input_names is not None else input_names_of(model)
    outputs = tuple(output_names) if output_names is not None else output_names_of(model)
    _make_flat(flat, separate=repeat)
    _check_names("input", inputs, len(examples))
    _check_names("output", outputs, len(_flat_outputs(flat)))

    dynamic = _dynamic_shapes(model, examples)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(flat, examples, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch.export raises anything from AssertionError to UserError
        raise ExportError(
            f"torch.export does not take the stripped model with a dynamic batch and the other dynamic sizes it was "
            f"captured with: {_first_line(error)}. Check that no operation of the model fixes the size."
        ) from error
    _write_sizes(program.graph)
    shapes = tuple(
        tuple(None if dim in dims else size for dim, size in enumerate(x.shape))
        for x, dims in zip(examples, dynamic, strict=True)
    )
    return NamedProgram(program, inputs, outputs, shapes, tuple(tuple(x.shape) for x in examples), layer_names)


def shapes_note(program: NamedProgram) -> dict[str, str]:
    """What the file says about the sizes of its example, for whoever counts the MACs in it."""
    if all(None not in shape[1:] for shape in program.shapes):
        return {}
    return {SHAPES_KEY: json.dumps(dict(zip(program.input_names, program.example_shapes, strict=True)))}


def input_names_of(model: fx.GraphModule) -> tuple[str, ...]:
    """Names of the flattened inputs that are tensors."""
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    specified = model.meta.get("djpq_inputs")
    if specified is not None and len(specified) == len(placeholders):
        return tuple(spec.name for spec in specified if spec.dtype is not None)
    return tuple(str(node.target) for node in placeholders)


def output_names_of(model: fx.GraphModule) -> tuple[str, ...]:
    """``output`` for a single tensor, the keys of a mapping, else ``output_0``, ``output_1``, ...

    A key that is the name of an input too gets ``_output`` behind it.
    """
    info = getattr(model.graph._codegen, "pytree_info", None)
    spec = info.out_spec if info is not None else None
    if spec is None:
        (structure,) = next(node for node in model.graph.nodes if node.op == "output").args
    else:
        structure = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    leaves, _ = pytree.tree_flatten_with_path(structure)
    flat = _flat_outputs(model)
    kept = [path for (path, _), value in zip(leaves, flat, strict=True) if isinstance(value, fx.Node)]
    if len(kept) == 1 and not any(hasattr(key, "key") or hasattr(key, "name") for key in kept[0]):
        return ("output",)
    names = ["_".join(_key_text(key) for key in path) for path in kept]
    inputs = input_names_of(model)
    return tuple(f"{name}_output" if name in inputs else name for name in names)


def _key_text(key: object) -> str:
    for attribute in ("key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return f"output_{getattr(key, 'idx', key)}"


def _flat_outputs(model: fx.GraphModule) -> list[object]:
    (output,) = next(node for node in model.graph.nodes if node.op == "output").args
    return pytree.tree_leaves(output, is_leaf=lambda leaf: leaf is None)


def _concatenate_slices(model: fx.GraphModule) -> None:
    """Replace a stretch of a tensor by concatenating what is before, the new values and what is behind.

    OpenVINO's conversion to INT8 takes the values put into a product of activations for codes of that product.
    """
    aten = torch.ops.aten
    graph = model.graph
    for node in [node for node in graph.nodes if node.target is aten.slice_scatter.default]:
        base, new = node.args[:2]
        assert isinstance(base, fx.Node)
        given = list(node.args[2:])
        dim, start, end, step = given + [0, None, None, 1][len(given) :]
        size = base.meta["val"].shape[dim]
        if step != 1:
            continue
        with graph.inserting_before(node):
            before = [] if start in (None, 0) else [graph.call_function(aten.slice.Tensor, (base, dim, 0, start))]
            reaches_end = end is None or (isinstance(end, int) and end >= size)
            behind = [] if reaches_end else [graph.call_function(aten.slice.Tensor, (base, dim, end))]
            parts = [*before, new, *behind]
            joined = graph.call_function(aten.cat.default, (parts, dim))
        joined.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(joined)
        graph.erase_node(node)


def _write_sizes(graph: fx.Graph) -> None:
    """Write the sizes of views as numbers wherever they are known.

    Models compute them from sizes of their inputs, or leave them to be inferred. A runtime then does not know how many
    heads there are, and OpenVINO has been seen to infer the wrong number.
    """
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target in (aten.view.default, aten.reshape.default):
            source, sizes = node.args
            free = [dim for dim, size in enumerate(node.meta["val"].shape) if isinstance(size, torch.SymInt)]
            written = [-1 if len(free) == 1 else sizes[dim] for dim in range(len(sizes))]
            written = [size if dim in free else int(node.meta["val"].shape[dim]) for dim, size in enumerate(written)]
            node.args = (source, written)
    graph.eliminate_dead_code()


def _make_flat(model: fx.GraphModule, *, separate: bool) -> None:
    """One flat tuple of outputs.

    ``separate``: an output that is read inside the network as well is a value of its own. ONNX Runtime moves
    QuantizeLinear backward through a transposition, and would then return the quantized value.
    """
    node = next(node for node in model.graph.nodes if node.op == "output")
    values: list[fx.Node] = []
    for value in _flat_outputs(model):
        if not isinstance(value, fx.Node):
            continue
        if value.op == "placeholder" or value in values or (separate and len(value.users) > 1):
            # a file names each tensor once; a clone the converters would take for the tensor itself
            with model.graph.inserting_before(node):
                value = model.graph.call_function(torch.ops.aten.unsqueeze.default, (value, 0))
                value = model.graph.call_function(torch.ops.aten.squeeze.dim, (value, 0))
        values.append(value)
    node.args = (tuple(values),)
    model.graph.set_codegen(fx.graph.CodeGen())
    model.recompile()


def _drop_constant_inputs(model: fx.GraphModule) -> None:
    """What a model got as a number, a flag or None when it was captured is part of the graph."""
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, model.meta.get("djpq_inputs", ()), strict=False):
        if spec.dtype is None:
            model.graph.erase_node(node)


def _example_inputs(model: fx.GraphModule) -> tuple[Tensor, ...]:
    specified = model.meta.get("djpq_inputs")
    if specified is not None:
        described = [(spec.shape, spec.dtype) for spec in specified if spec.dtype is not None]
    else:
        values = [node.meta.get("val") for node in model.graph.nodes if node.op == "placeholder"]
        if any(not isinstance(value, Tensor) for value in values):
            raise ExportError(
                "The model does not say which input shapes it takes. Export what strip() returned, or a "
                "model captured by djpq_nncf."
            )
        described = [(value.shape, value.dtype) for value in values if isinstance(value, Tensor)]
    if not described:
        raise ExportError("The model has no tensor input: there is nothing to export.")
    return tuple(torch.zeros([int(size) for size in shape], dtype=dtype) for shape, dtype in described)


def _dynamic_shapes(model: fx.GraphModule, examples: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """For torch.export: the batch, and what the model was captured with as dynamic."""
    batch: Any = torch.export.Dim.DYNAMIC
    specified = model.meta.get("djpq_inputs")
    if specified is None:
        return tuple({0: batch} if x.dim() > 0 and x.shape[0] == examples[0].shape[0] else {} for x in examples)
    return tuple(
        ({0: batch} if spec.batched else {}) | dict.fromkeys(spec.dynamic.dims, torch.export.Dim.DYNAMIC)
        for spec in specified
        if spec.dtype is not None
    )


def _check_names(kind: str, names: Sequence[str], count: int) -> None:
    if len(names) != count:
        raise ExportError(f"The model has {count} {kind}s, but {len(names)} {kind} names came: {list(names)}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ExportError(f"Each {kind} needs a name of its own; repeated: {repeated}. Pass {kind}_names.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
