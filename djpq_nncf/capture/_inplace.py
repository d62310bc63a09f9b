# SPDX-License-Identifier: Apache-2.0
"""Rewrites in-place operators as out-of-place ones.

torch.export keeps ``x.add_(y)`` and writes through views (``x[:, :2] += 1``) as they are. Here every tensor
has a current value: a mutation of a view is scattered into the tensor it looks at, and views that are read
after a mutation are taken again. PyTorch's own functionalisation does the same, but lowers BatchNorm and
dropout.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from djpq_nncf.capture._inputs import InputSpec
from djpq_nncf.capture._names import module_label
from djpq_nncf.capture._shapes import FakeInterpreter, run_fake
from djpq_nncf.capture._views import View, inverse_of
from djpq_nncf.errors import CaptureError

aten = torch.ops.aten


@dataclass(frozen=True)
class _Lost:
    """The value of a tensor that was mutated through a view which has no inverse."""

    mutation: fx.Node
    view: fx.Node


def remove_inplace(gm: fx.GraphModule, specs: tuple[InputSpec, ...]) -> None:
    """Make every operator of the graph out-of-place.

    Raises:
        CaptureError: the model writes into its own state, or through a view that cannot be inverted.
    """
    if not any(_is_mutation(node) for node in gm.graph.nodes):
        return
    _Rewriter(gm, run_fake(gm, specs)).run()


class _Rewriter:
    """One walk over the graph that replaces each read by the value current at that point.

    All dictionaries are keyed by nodes of the graph as it was; ``_current`` has what stands for them now.
    """

    def __init__(self, gm: fx.GraphModule, interpreter: FakeInterpreter) -> None:
        self._graph = gm.graph
        self._mode = interpreter.mode
        self._values: dict[fx.Node, Any] = dict(interpreter.env)
        self._storage = {node: _storage_of(value) for node, value in self._values.items()}
        self._version: dict[int, int] = {}
        self._seen: dict[fx.Node, int] = {}
        self._current: dict[fx.Node, fx.Node | _Lost] = {}
        self._view_of: dict[fx.Node, fx.Node] = {}
        self._original_args: dict[fx.Node, tuple[Any, Any]] = {}
        self._result_of: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        for node in list(self._graph.nodes):
            args, kwargs = node.args, node.kwargs
            with self._graph.inserting_before(node):
                node.args = fx.map_arg(args, self._read)
                node.kwargs = fx.map_arg(kwargs, self._read)
            if _is_mutation(node):
                self._mutate(node, args, kwargs)
            elif node.op == "call_function":
                self._define(node, args, kwargs)
            else:
                self._set(node, node)

    def _define(self, node: fx.Node, args: Any, kwargs: Any) -> None:
        storage = self._storage.get(node)
        if storage is not None:
            inputs = [self._canonical(n) for n in _nodes_in((args, kwargs))]
            parent = next((n for n in inputs if self._storage.get(n) == storage), None)
            is_item = node.target is operator.getitem
            if parent is not None and not (is_item and parent not in self._view_of):
                self._view_of[node] = parent
                self._original_args[node] = (args, kwargs)
        self._set(node, node)

    def _read(self, node: fx.Node) -> fx.Node:
        value = self._resolve(self._canonical(node))
        if isinstance(value, _Lost):
            raise CaptureError(
                f"{module_label(value.mutation)} changes a tensor in place "
                f"({_mutation_name(value.mutation)}) through a view ({value.view.target}) that cannot be "
                "written back, and the tensor is used afterwards. Use the out-of-place operator there "
                "(x = x + y, inplace=False), or clone() the view first."
            )
        return value

    def _resolve(self, node: fx.Node) -> fx.Node | _Lost:
        storage = self._storage.get(node)
        if storage is None or storage not in self._version:
            return node
        if self._seen.get(node, 0) == self._version[storage]:
            return self._current.get(node, node)
        parent = self._view_of.get(node)
        if parent is None:
            # Two roots of one storage: the same tensor under two names.
            return self._current.get(node, node)
        if isinstance(base := self._resolve(parent), _Lost):
            return base
        args, kwargs = self._original_args[node]
        target = node.target
        assert callable(target)
        renewed = self._graph.call_function(target, fx.map_arg(args, self._read), fx.map_arg(kwargs, self._read))
        renewed.meta = dict(node.meta)
        self._set(node, renewed)
        return renewed

    def _mutate(self, node: fx.Node, args: Any, kwargs: Any) -> None:
        target = self._canonical(args[0])
        self._refuse_state(node, target)
        above = self._path_up(target)
        with self._graph.inserting_before(node):
            priors = {base: self._resolve(base) for _, base in above}
        node.meta["mutation"] = str(node.target)
        value = self._rewrite(node, args, kwargs)
        self._result_of[node] = target
        storage = self._storage[target]
        assert storage is not None, "operators change tensors only"
        self._version[storage] = self._version.get(storage, 0) + 1
        self._set(target, value)
        written: fx.Node | _Lost = value
        for view, base in above:
            prior = priors[base]
            if isinstance(written, _Lost) or isinstance(prior, _Lost):
                written = _Lost(node, view)
            else:
                written = self._write_back(node, view, base, prior, written)
            self._set(base, written)

    def _path_up(self, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """Pairs (view, tensor it looks at) from ``node`` to the tensor that owns the storage."""
        path = []
        while node in self._view_of:
            base = self._view_of[node]
            path.append((node, base))
            node = base
        return path

    def _write_back(
        self, mutation: fx.Node, view: fx.Node, base: fx.Node, prior: fx.Node, value: fx.Node
    ) -> fx.Node | _Lost:
        args, _ = self._original_args[view]
        inverse = inverse_of(view)
        if inverse is None:
            return _Lost(mutation, view)
        same_shape = self._values[view].shape == self._values[base].shape
        context = View(self._graph, prior, value, tuple(args[1:]), same_shape)
        with self._graph.inserting_after(_last(value, mutation)):
            result = inverse(context)
        if result is None:
            return _Lost(mutation, view)
        if result is not value:
            result.meta = {k: v for k, v in mutation.meta.items() if k != "mutation"}
        return result

    def _rewrite(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        """Make the operator out-of-place; returns what has the shape and dtype of the tensor it changed."""
        old = self._values[args[0]]
        if node.target is aten.copy_.default:
            # aten.copy has no derivative.
            new, value = self._values[args[1]], node.args[1]
            node.target, node.args = aten.expand_as.default, (value, node.args[0])
            assert isinstance(value, fx.Node)
            value = value if new.shape == old.shape else node
        else:
            args = (*args, *_defaults(node))
            node.args = (*node.args, *_defaults(node))
            node.target = _out_of_place(node)
            fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: self._values[n])
            with self._mode, torch.no_grad():
                new, value = node.target(*fake_args, **fake_kwargs), node
        if new.dtype == old.dtype:
            return value
        # An out-of-place operator may promote what the in-place one keeps.
        with self._graph.inserting_after(node):
            cast = self._graph.call_function(aten.to.dtype, (value, old.dtype))
        cast.meta = dict(node.meta)
        return cast

    def _refuse_state(self, node: fx.Node, target: fx.Node) -> None:
        root = ([target] + [base for _, base in self._path_up(target)])[-1]
        if root.op == "get_attr":
            raise CaptureError(
                f"{module_label(node)} changes the model's own tensor '{root.target}' in eval mode "
                f"({node.target}), which a captured graph cannot do. Compute a new tensor instead, or update "
                "it outside of forward()."
            )

    def _canonical(self, node: fx.Node) -> fx.Node:
        return self._result_of.get(node, node)

    def _set(self, node: fx.Node, value: fx.Node | _Lost) -> None:
        storage = self._storage.get(node)
        self._current[node] = value
        if storage is not None:
            self._seen[node] = self._version.get(storage, 0)


# ``x &= y`` and the like
_PYTHON_NAMES = {
    "__iand__": "bitwise_and",
    "__ior__": "bitwise_or",
    "__ixor__": "bitwise_xor",
    "__ilshift__": "__lshift__",
    "__irshift__": "__rshift__",
}


def _is_mutation(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _mutation_name(node: fx.Node) -> str:
    return str(node.meta.get("mutation", node.target))


def _out_of_place(node: fx.Node) -> torch._ops.OpOverload:
    """``aten.add_.Tensor`` -> ``aten.add.Tensor``; the overload with the same parameters, whatever its name."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    namespace, _, name = target._schema.name.partition("::")
    stem = _PYTHON_NAMES.get(name) or name.removesuffix("_")
    for candidate in (stem, f"{stem}_functional"):
        packet = getattr(getattr(torch.ops, namespace), candidate, None)
        for overload in packet.overloads() if packet is not None and name.endswith("_") else ():
            found: torch._ops.OpOverload = getattr(packet, overload)
            if not found._schema.is_mutable and _parameters(found) == _parameters(target):
                return found
    raise CaptureError(
        f"{module_label(node)} uses {target}, which changes a tensor in place and has no out-of-place "
        "form. Use an out-of-place operator there."
    )


def _defaults(node: fx.Node) -> list[Any]:
    """What the operator takes for parameters that are not given; another overload may ask for them."""
    assert isinstance(node.target, torch._ops.OpOverload)
    rest = node.target._schema.arguments[len(node.args) :]
    return [argument.default_value for argument in rest if not argument.kwarg_only and argument.name not in node.kwargs]


def _parameters(operation: torch._ops.OpOverload) -> list[str]:
    return [str(argument.type) for argument in operation._schema.arguments]


def _storage_of(value: Any) -> int | None:
    if isinstance(value, (list, tuple)):
        return next((_storage_of(item) for item in value if isinstance(item, Tensor)), None)
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None


def _nodes_in(arguments: Any) -> list[fx.Node]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, fx.Node)]


def _last(first: fx.Node, second: fx.Node) -> fx.Node:
    """The later one of two nodes."""
    return second if first < second else first
