# SPDX-License-Identifier: Apache-2.0
"""Example inputs: checked, with a batch of at least two, described by ``InputSpec``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from djpq_nncf.errors import CaptureError


@dataclass(frozen=True)
class InputSpec:
    """One flattened input of a captured model.

    Args:
        name: name of the placeholder.
        shape: shape of the example, batch included; ``()`` for a value that is not a tensor.
        dtype: ``None`` for a value that is not a tensor.
        batched: dimension 0 is the batch and may have any size; the others are those of the example.
        value: the value that was captured, where the input is not a tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    batched: bool = True
    value: Any = None


@dataclass(frozen=True)
class Example:
    """Arguments of one forward call and the size of their batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int

    def leaves(self) -> list[Any]:
        return list(pytree.tree_leaves((self.args, self.kwargs)))


def make_example(args: Any, kwargs: Any) -> Example:
    """Check the arguments and copy their tensors, so that nothing done with them reaches the caller."""
    if not isinstance(args, tuple):
        raise CaptureError(
            f"capture() takes the example inputs as a tuple, not {type(args).__name__}: pass (x,) for one."
        )
    if kwargs is not None and not isinstance(kwargs, dict):
        raise CaptureError(f"capture() takes the keyword inputs as a dict, not {type(kwargs).__name__}.")
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs or {}))
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if _has_batch(leaf)]
    if not sizes:
        raise CaptureError(
            "The example inputs hold no tensor with a batch dimension: pass at least one tensor of shape (batch, ...)."
        )
    if sizes[0] == 0:
        raise CaptureError("The example batch is empty: pass at least one sample.")
    return Example(args, kwargs, sizes[0])


def doubled(example: Example) -> Iterator[Example]:
    """Guesses of the same example with a batch of two, the likeliest first.

    A batch of one would be taken for a constant by torch.export. Inputs whose dimension 0 is one are taken
    for batched first; the second guess takes only the first of them.
    """
    flat, spec = pytree.tree_flatten((example.args, example.kwargs))
    ones = [i for i, leaf in enumerate(flat) if _has_batch(leaf) and leaf.shape[0] == 1]
    for chosen in (ones, ones[:1]) if len(ones) > 1 else (ones,):
        leaves = [torch.cat([leaf, leaf]) if i in chosen else leaf for i, leaf in enumerate(flat)]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        yield Example(args, kwargs, 2)


def _has_batch(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0
