# SPDX-License-Identifier: Apache-2.0
"""Model inputs out of whatever a data loader yields."""

import itertools
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from djpq_nncf.capture import DynamicDims, argument_names, bind_inputs, is_captured
from djpq_nncf.config import InputInfo
from djpq_nncf.errors import DataError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""

_DTYPES = {"float": torch.float32, "long": torch.int64, "int": torch.int32, "bool": torch.bool}
_TARGET_KEYS = frozenset({"label", "labels", "target", "targets"})


def inputs_of(batch: Any, names: Container[str] = ()) -> Inputs:
    """The model's inputs in a batch.

    A tensor is the input. Of a tuple or list the first item is, and the rest are targets. A mapping holds keyword
    arguments; entries named like labels are left out unless the model is known to take them: they are in ``names``.
    """
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise DataError("A batch of init_data is empty. It should be a tensor, (inputs, targets) or a dict.")
        batch = batch[0]
        if isinstance(batch, (tuple, list)):
            return tuple(batch), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key in names or key not in _TARGET_KEYS}
    raise DataError(
        f"A batch of init_data is a {type(batch).__name__}. It should be a tensor, (inputs, targets) or a dict."
    )


def check_finite(inputs: Inputs, origin: str) -> None:
    """Raise where an input holds NaN or infinity."""
    for position, leaf in enumerate(tree_leaves(inputs)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not torch.isfinite(leaf).all():
            raise DataError(
                f"{origin}: input {position} holds NaN or infinity. Ranges taken from it would be useless; "
                "clean the data first."
            )


def iterate_inputs(model: nn.Module, data: Iterable[Any], samples: int) -> Iterator[tuple[Inputs, int]]:
    """Inputs for ``model`` batch by batch, with their number of samples, until ``samples`` have been seen.

    A captured model gets them in the form it was captured with: by position or by keyword.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0
    for number, batch in enumerate(data):
        origin = f"init_data, batch {number}"
        if is_captured(model):
            inputs = bind_inputs(model, *inputs_of(batch, argument_names(model)), origin)
        else:
            inputs = inputs_of(batch)
        check_finite(inputs, origin)
        count = batch_size(inputs)
        yield to_device(inputs, device), count
        seen += count
        if seen >= samples:
            return
    if seen == 0:
        raise DataError("init_data yields nothing. Pass a data loader (or a list of batches) with samples in it.")


def batch_size(inputs: Inputs) -> int:
    """Length of the first tensor's first dimension."""
    return next((len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def _first_two(inputs: Inputs) -> Inputs:
    """The same inputs with two samples; tensors that are not batched stay as they are."""
    count = batch_size(inputs)

    def shorten(leaf: Any) -> Any:
        return leaf[:2] if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count else leaf

    shortened: Inputs = tree_map(shorten, inputs)
    return shortened


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Inputs with every tensor on ``device``."""
    moved: Inputs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
    return moved


def dynamic_from_config(infos: tuple[InputInfo, ...]) -> dict[int | str, DynamicDims]:
    """What ``input_info`` says about other sizes than the example's, as ``capture()`` takes it."""
    positional = itertools.count()
    keys = [next(positional) if info.keyword is None else info.keyword for info in infos]
    return {
        key: DynamicDims(**vars(info.dynamic))
        for key, info in zip(keys, infos, strict=True)
        if info.dynamic is not None
    }


def example_from_config(infos: tuple[InputInfo, ...]) -> Inputs | None:
    """Example inputs as ``input_info`` describes them, or None where it is absent."""
    if not infos:
        return None
    generator = torch.Generator().manual_seed(0)
    args, kwargs = [], {}
    for info in infos:
        if info.filler != "random":
            value = torch.full(info.sample_size, float(info.filler == "ones"))
        elif info.type == "float":
            value = torch.rand(info.sample_size, generator=generator)
        else:
            value = torch.randint(0, 2, info.sample_size, generator=generator)
        value = value.to(_DTYPES[info.type])
        if info.keyword is None:
            args.append(value)
        else:
            kwargs[info.keyword] = value
    return tuple(args), kwargs


def find_example(example: Any, infos: tuple[InputInfo, ...], data: Iterable[Any] | None) -> Inputs:
    """Example inputs from, in this order: what the caller passed, ``input_info``, the first batch of the data.

    Raises:
        DataError: none of the three is there.
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    if example is not None:
        return tuple(example) if isinstance(example, (tuple, list)) else (example,), {}
    described = example_from_config(infos)
    if described is not None:
        return described
    if data is not None:
        for batch in data:
            return _first_two(inputs_of(batch))
    raise DataError(
        "The shape of the model's inputs is not known. Pass init_data=your_loader or example_inputs=tensor, or write "
        '"input_info": {"sample_size": [1, 3, 224, 224]} in the config.'
    )
