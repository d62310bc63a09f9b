# SPDX-License-Identifier: Apache-2.0
"""Inputs in whatever form they come -> the arguments a captured graph was made with."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from djpq_nncf.capture._inputs import InputSpec
from djpq_nncf.capture._shapes import INPUTS_KEY
from djpq_nncf.errors import DataError


def argument_names(gm: fx.GraphModule) -> tuple[str, ...]:
    """The arguments of ``forward`` that a captured graph takes: positional ones first, then keywords."""
    args, kwargs = _positions(gm)
    names = gm.graph._codegen.pytree_info.orig_args  # type: ignore[attr-defined]
    # orig_args lacks nothing but the names of *args
    positional = names[: len(args)] if len(names) == len(args) + len(kwargs) else map(str, range(len(args)))
    return (*positional, *kwargs)


def bind_inputs(
    gm: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], origin: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Sort ``args`` and ``kwargs`` into what ``gm`` takes by position and what by keyword.

    What ``gm`` was captured with and is no tensor (flags, None) may be left out.

    Raises:
        DataError: an input is missing or unknown; it names ``origin``.
    """
    names = argument_names(gm)
    if len(args) > len(names):
        raise DataError(f"{origin} holds {len(args)} inputs by position, but the model takes {list(names)}.")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise DataError(
            f"{origin} holds {unknown}, but the model was captured with the inputs {list(names)}. Take them out of the "
            "batches, or pass example_inputs that have them."
        )
    specs: tuple[InputSpec, ...] = gm.meta[INPUTS_KEY]
    positional, keywords = _positions(gm)
    for name, leaves in zip(names, (*positional, *keywords.values()), strict=True):
        if name in given:
            continue
        indices = pytree.tree_leaves(leaves)
        if any(specs[index].dtype is not None for index in indices):
            raise DataError(f"{origin} lacks '{name}'. The model takes the inputs {list(names)}.")
        given[name] = pytree.tree_map(lambda index: specs[index].value, leaves)
    count = len(positional)
    return tuple(given[name] for name in names[:count]), {name: given[name] for name in names[count:]}


def _positions(gm: fx.GraphModule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``gm`` with the position of each flattened input in the place of its value."""
    spec = gm.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
    args, kwargs = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    return args, kwargs
