# SPDX-License-Identifier: Apache-2.0
"""Runs a captured graph beside the model at other sizes than it was captured with."""

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from djpq_nncf.capture._inputs import Example
from djpq_nncf.capture._shapes import eval_mode
from djpq_nncf.capture._sizes import DynamicSizes
from djpq_nncf.errors import CaptureError

_TOLERANCE = 1e-3


def try_other_sizes(model: nn.Module, gm: fx.GraphModule, sizes: DynamicSizes) -> None:
    """Raise a CaptureError where the model fails, or the graph computes something else, at another size."""
    name = type(model).__name__
    for text, example, needed in sizes.other_examples():
        try:
            expected = _outputs(model, example)
        except Exception as error:
            # The model is the user's: anything may come out of it.
            if not needed:
                continue
            raise CaptureError(
                f"{name} itself fails with {text}: {type(error).__name__}: {_first_line(error)}. Limit the sizes "
                "with multiple_of, min or max, or leave the dimension out of the dynamic ones."
            ) from error
        try:
            actual = _outputs(gm, example)
        except Exception as error:
            raise _differs(name, text, f"{type(error).__name__}: {_first_line(error)}") from error
        if not _same(actual, expected):
            raise _differs(name, text, "its output is another")


def _outputs(model: nn.Module, example: Example) -> list[Tensor]:
    # Operators that are random in eval mode too have to draw the same numbers.
    torch.manual_seed(0)
    with torch.no_grad(), eval_mode(model):
        result = model(*example.args, **example.kwargs)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _same(actual: list[Tensor], expected: list[Tensor]) -> bool:
    if [(t.shape, t.dtype) for t in actual] != [(t.shape, t.dtype) for t in expected]:
        return False
    return all(
        torch.allclose(ours.double(), theirs.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for ours, theirs in zip(actual, expected, strict=True)
    )


def _differs(name: str, text: str, how: str) -> CaptureError:
    return CaptureError(
        f"{name} cannot be captured with these dynamic dimensions: with {text} the graph does not do what the model "
        f"does ({how}), because forward() turns a size into a constant. Limit the sizes with multiple_of, min or "
        "max, or leave the dimension out of the dynamic ones."
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300].rstrip(".")
