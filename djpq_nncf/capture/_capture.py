# SPDX-License-Identifier: Apache-2.0
"""capture(): the steps from a model to a trainable graph."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from djpq_nncf.capture._export import export_model, settle_batch
from djpq_nncf.capture._inline import inline_contexts
from djpq_nncf.capture._inplace import remove_inplace
from djpq_nncf.capture._inputs import Example, InputSpec, make_example
from djpq_nncf.capture._modes import restore_batch_norms, restore_dropouts
from djpq_nncf.capture._quiet import quiet_export
from djpq_nncf.capture._shapes import DTYPE_KEY, INPUTS_KEY, parameter_dtype, propagate_shapes
from djpq_nncf.capture._state import CAPTURED_KEY, add_constant, refuse_reserved_names, skeleton
from djpq_nncf.capture._train_mode import warn_of_train_only, watch_train_mode
from djpq_nncf.errors import CaptureError

_KEPT_META = ("nn_module_stack", "stack_trace")
_CHECKS = (
    torch.ops.aten._assert_tensor_metadata,
    torch.ops.aten._assert_scalar,
    torch.ops.aten._assert_async,
    torch.ops.aten.sym_constrain_range,
    torch.ops.aten.sym_constrain_range_for_size,
)


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.GraphModule:
    """Capture a model as a ``torch.fx.GraphModule`` that can be trained and rewritten.

    The graph has the signature, output structure, parameter names and train/eval behaviour of the model, and
    takes any batch size. The model itself is not changed: the graph has copies of its tensors.

    Args:
        model: any module torch.export can capture. One that was captured already is copied.
        args: example inputs, batch first.
        kwargs: example keyword inputs.

    Raises:
        CaptureError: the inputs do not fit the model, or it is not a static graph of tensor operations.

    Warns:
        UserWarning: modules that work only in train mode (stochastic depth, auxiliary heads) are left out.

    Example:
        >>> gm = capture(torchvision.models.resnet18(), (torch.randn(2, 3, 224, 224),))
        >>> gm.train()(torch.randn(16, 3, 224, 224)).shape
        torch.Size([16, 1000])
    """
    example = make_example(args, kwargs)
    with torch.random.fork_rng(_cuda_devices(model)):
        if is_captured(model):
            return _recapture(model, example)
        refuse_reserved_names(model)
        original = _copy(model)
        modes = [module.training for module in original.modules()]
        original.eval()
        example = settle_batch(original, example)
        program, specs = export_model(original, example)
        behaviour = watch_train_mode(original, example)
    for module, training in zip(original.modules(), modes, strict=True):
        module.training = training
    gm = _assemble(original, program)
    gm.meta = {CAPTURED_KEY: True, INPUTS_KEY: specs, DTYPE_KEY: parameter_dtype(gm)}
    remove_inplace(gm, specs)
    gm.recompile()
    propagate_shapes(gm)
    restore_batch_norms(gm, original, behaviour)
    dropouts = restore_dropouts(gm, original)
    gm.graph.eliminate_dead_code()
    gm.graph.lint()
    gm.recompile()
    propagate_shapes(gm)
    warn_of_train_only(original, gm.graph, dropouts, behaviour, stacklevel=2)
    return gm


def is_captured(model: nn.Module) -> bool:
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
    gm.meta[INPUTS_KEY] = tuple(
        InputSpec(spec.name, tuple(leaf.shape), leaf.dtype, batched=spec.batched) if isinstance(leaf, Tensor) else spec
        for spec, leaf in zip(specs, leaves, strict=True)
    )
    gm.meta[DTYPE_KEY] = parameter_dtype(gm)
    propagate_shapes(gm)
    return gm


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        # Custom __deepcopy__ methods raise whatever they like.
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): it has to support "
            "copy.deepcopy."
        ) from error


def _assemble(original: nn.Module, program: ExportedProgram) -> fx.GraphModule:
    """The exported graph on a module that has the parameters of ``original``."""
    with quiet_export():
        source = program.module()
    assert isinstance(source, fx.GraphModule)
    _drop_checks(source.graph)
    inline_contexts(source)
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
