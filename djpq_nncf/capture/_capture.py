# SPDX-License-Identifier: Apache-2.0
"""capture(): the steps from a model to a trainable graph."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from djpq_nncf.capture._einsum import write_out_einsums
from djpq_nncf.capture._export import export_model, settle_batch
from djpq_nncf.capture._inline import inline_contexts
from djpq_nncf.capture._inplace import remove_inplace
from djpq_nncf.capture._inputs import DynamicDims, Example, InputSpec, make_example
from djpq_nncf.capture._modes import restore_batch_norms, restore_dropouts
from djpq_nncf.capture._quiet import quiet_export
from djpq_nncf.capture._shapes import DTYPE_KEY, INPUTS_KEY, parameter_dtype, propagate_shapes
from djpq_nncf.capture._state import CAPTURED_KEY, add_constant, copy_model, refuse_reserved_names, skeleton
from djpq_nncf.capture._train_mode import warn_of_train_only, watch_train_mode
from djpq_nncf.capture._train_only import marked, paths_in, random_paths, restore_attention_dropouts, restore_train_only
from djpq_nncf.capture._trial import try_other_sizes
from djpq_nncf.errors import CaptureError

_KEPT_META = ("nn_module_stack", "stack_trace")
_CHECKS = (
    torch.ops.aten._assert_tensor_metadata,
    torch.ops.aten._assert_scalar,
    torch.ops.aten._assert_async,
    torch.ops.aten.sym_constrain_range,
    torch.ops.aten.sym_constrain_range_for_size,
)


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic: Mapping[int | str, DynamicDims] | None = None,
) -> fx.GraphModule:
    """Capture a model as a ``torch.fx.GraphModule`` that can be trained and rewritten.

    The graph has the signature, output structure, parameter names and train/eval behaviour of the model, and
    takes any batch size. The model itself is not changed: the graph has copies of its tensors.

    Other sizes than the example's (of an image, of a sequence) have to be asked for. Where the code of the model
    branches on such a size, one graph cannot hold for all of them: it is an error, unless the wanted sizes are
    limited to those of one branch. The graph is compared with the model at two other sizes.

    Args:
        model: any module torch.export can capture. One that was captured already is copied.
        args: example inputs, batch first.
        kwargs: example keyword inputs.
        dynamic: dimensions besides the batch that may have other sizes, by position of a positional input or name
            of a keyword input. For an input that is a list or dict of tensors they hold for each of them.

    Raises:
        CaptureError: the inputs do not fit the model, or it is not a static graph of tensor operations, or not
            one graph for all sizes of the dynamic dimensions.

    Warns:
        UserWarning: modules that work only in train mode (auxiliary heads, layers skipped at random) are left out.

    Example:
        >>> gm = capture(torchvision.models.resnet18(), (torch.randn(2, 3, 224, 224),))
        >>> gm.train()(torch.randn(16, 3, 224, 224)).shape
        torch.Size([16, 1000])
        >>> gm = capture(model, (torch.randn(2, 3, 224, 224),), dynamic={0: DynamicDims((2, 3), multiple_of=32)})
    """
    example = make_example(args, kwargs, dynamic)
    with torch.random.fork_rng(_cuda_devices(model)):
        if is_captured(model):
            return _recapture(model, example)
        refuse_reserved_names(model)
        original = copy_model(model)
        modes = [module.training for module in original.modules()]
        # what a module keeps for inference, computed from its parameters, is dropped in train mode
        original.train().eval()
        example = settle_batch(copy_model(original, share_parameters=True), example)
        behaviour = watch_train_mode(original, example)
        with marked(original, behaviour):
            exported = export_model(original, example)
    for module, training in zip(original.modules(), modes, strict=True):
        module.training = training
    gm = _assemble(original, exported.program)
    gm.meta = {CAPTURED_KEY: True, INPUTS_KEY: exported.specs, DTYPE_KEY: parameter_dtype(gm)}
    remove_inplace(gm, exported.specs)
    gm.recompile()
    propagate_shapes(gm)
    restore_batch_norms(gm, original, behaviour)
    random = restore_dropouts(gm, original) | restore_train_only(gm, original)
    restore_attention_dropouts(gm, behaviour)
    gm.graph.eliminate_dead_code()
    gm.graph.lint()
    gm.recompile()
    propagate_shapes(gm)
    write_out_einsums(gm)
    if dynamic:
        with torch.random.fork_rng(_cuda_devices(model)):
            try_other_sizes(copy_model(model, share_parameters=True), gm, exported.sizes)
    active = exported.active | paths_in(gm.graph)
    warn_of_train_only(original, active, random | random_paths(gm.graph), behaviour, stacklevel=2)
    return gm


def is_captured(model: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Is ``model`` a graph made by :func:`capture`, or by a pass over one?

    ``copy.deepcopy`` keeps the mark, pickling loses it (it traces the graph anew).
    """
    return isinstance(model, fx.GraphModule) and CAPTURED_KEY in model.meta


def _recapture(model: nn.Module, example: Example) -> fx.GraphModule:
    example = settle_batch(model, example)
    gm = copy.deepcopy(model)
    assert isinstance(gm, fx.GraphModule)
    leaves = example.leaves()
    specs: tuple[InputSpec, ...] = gm.meta[INPUTS_KEY]
    if len(leaves) != len(specs):
        raise CaptureError(f"The captured model takes {len(specs)} inputs, {len(leaves)} were given.")
    for spec, wanted in zip(specs, example.dynamic, strict=True):
        if not set(wanted.dims) <= set(spec.dynamic.dims):
            raise CaptureError(
                f"The model was captured with the dynamic dimensions {spec.dynamic.dims} of input '{spec.name}', and "
                f"cannot get {wanted.dims} now. Capture the original model."
            )
    gm.meta[INPUTS_KEY] = tuple(
        replace(spec, shape=tuple(leaf.shape), dtype=leaf.dtype) if isinstance(leaf, Tensor) else spec
        for spec, leaf in zip(specs, leaves, strict=True)
    )
    gm.meta[DTYPE_KEY] = parameter_dtype(gm)
    propagate_shapes(gm)
    return gm


def _assemble(original: nn.Module, program: ExportedProgram) -> fx.GraphModule:
    """The exported graph on a module that has the parameters of ``original``."""
    with quiet_export():
        source = program.module()
    assert isinstance(source, fx.GraphModule)
    inline_contexts(source)
    _drop_checks(source.graph)
    gm = skeleton(original)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, fx.Node] = {}
    # torch.export puts parameters before inputs; FX passes expect the inputs first.
    for node in sorted(source.graph.nodes, key=lambda n: n.op != "placeholder"):
        if node.op == "get_attr":
            if not node.users:
                continue
            target = _carry(gm, source, str(node.target))
            if target not in attributes:
                attributes[target] = graph.create_node("get_attr", target, name=node.name)
            copies[node] = attributes[target]
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
        meta = copies[node].meta
        copies[node].meta = {key: meta[key] for key in _KEPT_META if key in meta}
    graph._codegen = copy.deepcopy(source.graph._codegen)
    gm.graph = graph
    return gm


def _carry(gm: fx.GraphModule, source: fx.GraphModule, target: str) -> str:
    """Path in ``gm`` of the tensor that ``source`` calls ``target``."""
    owner, _, name = target.rpartition(".")
    try:
        holder = gm.get_submodule(owner)
    except AttributeError:
        holder = None
    if holder is not None and (name in holder._parameters or name in holder._buffers):
        return target
    value: Any = source
    for atom in target.split("."):
        value = getattr(value, atom)
    if not isinstance(value, Tensor):
        raise CaptureError(
            f"The model uses '{target}', a {type(value).__name__}, in forward(): only parameters, buffers "
            "and constant tensors can be in a captured graph."
        )
    return add_constant(gm, target, value)


def _drop_checks(graph: fx.Graph) -> None:
    """Remove the guards of torch.export, which fix what the example happened to be."""
    for node in reversed(graph.nodes):
        is_guard = node.op == "call_module" and node.target == "_guards_fn"
        is_check = getattr(node.target, "overloadpacket", None) in _CHECKS
        if is_guard or is_check:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})
