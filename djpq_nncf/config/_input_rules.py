# SPDX-License-Identifier: Apache-2.0
"""What a JSON Schema cannot say about ``input_info``: dynamic dimensions have to fit the sample size."""

from collections.abc import Iterator
from typing import Any

from djpq_nncf.config._problems import Path, Problem


def input_rules(inputs: list[dict[str, Any]], at: list[Path]) -> Iterator[Problem]:
    """Yield the contradictions.

    Args:
        inputs: The entries of ``input_info`` with every key, each of the right type.
        at: Where each stands in the document.
    """
    for entry, path in zip(inputs, at, strict=True):
        # what the schema did not allow is not there any more
        if "dims" in (entry["dynamic"] or {}):
            yield from _dynamic_problems(entry["sample_size"], entry["dynamic"], (*path, "dynamic"))


def _dynamic_problems(shape: list[int], dynamic: dict[str, Any], path: Path) -> Iterator[Problem]:
    low, high, step = (dynamic[key] for key in ("min", "max", "multiple_of"))
    for position, dim in enumerate(dynamic["dims"]):
        place = (*path, "dims", position)
        if dim >= len(shape):
            yield Problem(place, f"{dim} is no dimension of sample_size, {shape}; count from 0, the batch")
        elif shape[dim] < 2:
            yield Problem(
                place,
                f"dimension {dim} of sample_size is {shape[dim]}, which says nothing about other sizes; "
                "give an example of at least 2",
            )
        elif shape[dim] < (low or 0) or shape[dim] > (high or shape[dim]) or shape[dim] % step:
            yield Problem(
                place,
                f"dimension {dim} of sample_size is {shape[dim]}, which is not among the sizes of dynamic "
                f"(min {low}, max {high}, multiple_of {step}); give an example that is",
            )
