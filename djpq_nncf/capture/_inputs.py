# SPDX-License-Identifier: Apache-2.0
"""Example inputs: checked, with a batch of at least two, described by ``InputSpec``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from djpq_nncf.errors import CaptureError


@dataclass(frozen=True)
class DynamicDims:
    """Dimensions of an input, besides the batch, whose size may differ from the example's.

    Args:
        dims: their indices, 1 or more.
        min: smallest size the model has to take.
        max: largest size the model has to take.
        multiple_of: every size is a multiple of this.
    """

    dims: tuple[int, ...] = ()
    min: int | None = None
    max: int | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        step = self.multiple_of
        if step < 1 or (self.max is not None and -(-max(2, self.min or 2) // step) * step > self.max):
            raise CaptureError(f"No size fits {self}: between min and max there has to be a multiple of multiple_of.")

    def __contains__(self, size: int) -> bool:
        above = self.min is None or size >= self.min
        return above and (self.max is None or size <= self.max) and size % self.multiple_of == 0

    def nearby(self, example: int) -> range:
        """Sizes in question around that of the example; without bounds, from its half to four times it."""
        step = self.multiple_of
        low = max(2, -(-example // 2) if self.min is None else self.min)
        high = 4 * example if self.max is None else self.max
        return range(-(-low // step) * step, high + 1, step)


@dataclass(frozen=True)
class InputSpec:
    """One flattened input of a captured model.

    Args:
        name: name of the placeholder.
        shape: shape of the example, batch included; ``()`` for a value that is not a tensor.
        dtype: ``None`` for a value that is not a tensor.
        batched: dimension 0 is the batch and may have any size.
        value: the value that was captured, where the input is not a tensor.
        dynamic: dimensions which may have other sizes than the example, as capture() was asked; the remaining
            ones are those of the example.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    batched: bool = True
    value: Any = None
    dynamic: DynamicDims = DynamicDims()


@dataclass(frozen=True)
class Example:
    """Arguments of one forward call, the size of their batch and what is dynamic in each tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    dynamic: tuple[DynamicDims, ...]

    def leaves(self) -> list[Any]:
        return list(pytree.tree_leaves((self.args, self.kwargs)))

    def with_leaves(self, leaves: list[Any], batch: int) -> "Example":
        """The same call with other tensors."""
        _, spec = pytree.tree_flatten((self.args, self.kwargs))
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return replace(self, args=args, kwargs=kwargs, batch=batch)


def make_example(args: Any, kwargs: Any, dynamic: Mapping[int | str, DynamicDims] | None = None) -> Example:
    """Check the arguments and copy their tensors, so that nothing done with them reaches the caller."""
    if not isinstance(args, tuple):
        raise CaptureError(
            f"capture() takes the example inputs as a tuple, not {type(args).__name__}: pass (x,) for one."
        )
    if kwargs is not None and not isinstance(kwargs, dict):
        raise CaptureError(f"capture() takes the keyword inputs as a dict, not {type(kwargs).__name__}.")
    register_dataclasses((args, kwargs))
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs or {}))
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if _has_batch(leaf)]
    if not sizes:
        raise CaptureError(
            "The example inputs hold no tensor with a batch dimension: pass at least one tensor of shape (batch, ...)."
        )
    if sizes[0] == 0:
        raise CaptureError("The example batch is empty: pass at least one sample.")
    return Example(args, kwargs, sizes[0], tuple(_dynamic_of_leaves(args, kwargs, dynamic or {})))


def register_dataclasses(value: Any) -> None:
    """Let torch see the tensors in dataclasses; it asks for each class to be registered once."""
    for leaf in pytree.tree_leaves(value):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            register_dataclasses(leaf)


def doubled(example: Example) -> Iterator[Example]:
    """Guesses of the same example with a batch of two, the likeliest first.

    A batch of one would be taken for a constant by torch.export. Inputs whose dimension 0 is one are taken
    for batched first; the second guess takes only the first of them.
    """
    flat = example.leaves()
    ones = [i for i, leaf in enumerate(flat) if _has_batch(leaf) and leaf.shape[0] == 1]
    for chosen in (ones, ones[:1]) if len(ones) > 1 else (ones,):
        leaves = [torch.cat([leaf, leaf]) if i in chosen else leaf for i, leaf in enumerate(flat)]
        yield example.with_leaves(leaves, 2)


def _has_batch(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _dynamic_of_leaves(
    args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Mapping[int | str, DynamicDims]
) -> Iterator[DynamicDims]:
    inputs: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
    for key in dynamic:
        if key not in inputs:
            raise CaptureError(
                f"Dynamic dimensions are given for the input {key!r}, which is not among the example inputs "
                f"{list(inputs)}. Name a keyword input, or the position of a positional one."
            )
    for key, value in inputs.items():
        for leaf in pytree.tree_leaves(value):
            if key in dynamic:
                _check_dynamic(key, leaf, dynamic[key])
            yield dynamic.get(key, DynamicDims())


def _check_dynamic(key: int | str, leaf: Any, dynamic: DynamicDims) -> None:
    shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else ()
    for dim in dynamic.dims:
        if not 0 < dim < len(shape):
            raise CaptureError(
                f"Input {key!r}, of shape {shape}, has no dimension {dim} that could be dynamic: name indices "
                f"from 1 to {len(shape) - 1}. Dimension 0, the batch, always is."
                if len(shape) > 1
                else f"Input {key!r} has no dimension besides the batch that could be dynamic."
            )
        if shape[dim] < 2 or shape[dim] not in dynamic:
            raise CaptureError(
                f"Input {key!r}, dimension {dim} is dynamic, but the example has {shape[dim]} there. Give an "
                "example of at least 2 that fits min, max and multiple_of."
            )
