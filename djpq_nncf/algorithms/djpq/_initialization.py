# SPDX-License-Identifier: Apache-2.0
"""Starting ranges of the quantizers, from the weights and from data."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from djpq_nncf.algorithms._data import iterate_inputs
from djpq_nncf.algorithms._progress import track
from djpq_nncf.algorithms.djpq._settings import InitializerSettings
from djpq_nncf.errors import DataError
from djpq_nncf.nn import (
    ActivationQuantizer,
    WeightQuantizer,
    levels_below_zero,
    signed_levels,
    unsigned_levels,
)

_VALUES_PER_BATCH = 1 << 16
_CANDIDATES = 64
_SMALLEST_SHARE = 0.05
_BITS_FOR_ALL_WEIGHTS = 8


def initialize_weight_ranges(
    model: GraphModule, quantizers: Mapping[str, nn.Module], initial_bits: int, settings: InitializerSettings
) -> None:
    """Range of each weight quantizer from the weight itself.

    With 8 bits ``mse`` keeps all of it: rounding errors average out in a layer's sum, those of clipped weights do not,
    and there are levels enough.
    """
    whole = replace(settings, range_type="min_max")
    for name, quantizer in quantizers.items():
        assert isinstance(quantizer, WeightQuantizer)
        weight = model.get_parameter(name).detach()
        bits = quantizer.bits or initial_bits
        estimator = whole if settings.range_type == "mse" and bits >= _BITS_FOR_ALL_WEIGHTS else settings
        levels = signed_levels(bits)
        quantizer.initialize_(find_range([weight.flatten()], (-levels, levels), estimator), bits)


@torch.no_grad()
def initialize_activation_ranges(
    model: GraphModule,
    quantizers: Mapping[str, nn.Module],
    initial_bits: int,
    data: Iterable[Any],
    settings: InitializerSettings,
) -> None:
    """Range of each activation quantizer from the values that reach it.

    Raises:
        DataError: the data is empty, holds NaN or infinity, makes the model produce them, or does not fit the model.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in quantizers}

    def collect(name: str) -> Callable[[Tensor], object]:
        return lambda x: values[name].append(_subsample(x))

    training = model.training
    model.eval()
    with ExitStack() as stack:
        for name, quantizer in quantizers.items():
            assert isinstance(quantizer, ActivationQuantizer)
            stack.enter_context(quantizer.observe(collect(name)))
        with track("Initialising ranges", settings.num_init_samples) as advance:
            for (args, kwargs), count in iterate_inputs(model, data, settings.num_init_samples):
                try:
                    model(*args, **kwargs)
                except RuntimeError as error:
                    raise _unfit((args, kwargs), error) from error
                advance(count)
    model.train(training)
    for name, quantizer in quantizers.items():
        assert isinstance(quantizer, ActivationQuantizer)
        bits = quantizer.bits or initial_bits
        if not values[name]:
            continue
        if not all(torch.isfinite(batch).all() for batch in values[name]):
            raise DataError(
                f"The activation '{name}' becomes NaN or infinite on init_data. Check that the model is trained "
                "and that the data is normalised as it was in its training."
            )
        initialize_range(quantizer, values[name], bits, settings)


def _unfit(inputs: Any, error: RuntimeError) -> DataError:
    """What to say where the first batches cannot be computed: above all, where they have other shapes."""
    given = [tuple(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    reason = str(error).strip().partition("\n")[0]
    return DataError(
        f"The model fails on a batch of init_data, with inputs of the shapes {given}: {reason}. Such batches should be "
        "what the network was trained on, and agree with input_info in the config, or example_inputs, where given."
    )


def initialize_range(
    quantizer: ActivationQuantizer, values: list[Tensor], bits: int, settings: InitializerSettings
) -> None:
    """Range of one quantizer from the values that reach it."""
    if quantizer.grid == "asymmetric":
        low, high = find_limits(values, bits, settings)
        quantizer.initialize_(high - low, bits, low_share=-low / (high - low))
    else:
        quantizer.initialize_(find_range(values, quantizer.codes_with(bits), settings), bits)


def find_range(values: list[Tensor], codes: tuple[int, int], settings: InitializerSettings) -> float:
    """The largest value to represent on a grid of these codes: that of least squared error, a percentile, or all."""
    x = torch.cat(values).float()
    lowest, highest = codes
    # a negative value takes the range that a positive one would need for its step
    magnitude = torch.where(x < 0, x * (highest / (lowest or -math.inf)), x)
    largest = float(magnitude.max()) if magnitude.numel() else 0.0
    if largest == 0:
        return 1.0
    if settings.range_type == "min_max":
        return largest
    if settings.range_type == "percentile":
        rank = min(magnitude.numel(), max(1, round(settings.percentile / 100 * magnitude.numel())))
        return float(magnitude.kthvalue(rank).values) or largest
    x = _thinned(x)

    def error(share: float) -> float:
        step = share * largest / highest
        return float((x - (x / step).round().clamp(*codes) * step).square().sum())

    return _best_share(error) * largest


def find_limits(values: list[Tensor], bits: int, settings: InitializerSettings) -> tuple[float, float]:
    """The smallest and the largest value to represent on an asymmetric grid, by the same three estimators.

    A percentile is taken at both ends. For the least squared error the upper limit is chosen first.
    """
    x = torch.cat(values).float()
    low, high = (min(0.0, float(x.min())), max(0.0, float(x.max()))) if x.numel() else (0.0, 0.0)
    if low == high:
        return 0.0, 1.0
    if settings.range_type == "min_max":
        return low, high
    if settings.range_type == "percentile":
        rank = min(x.numel(), max(1, round(settings.percentile / 100 * x.numel())))
        within = min(0.0, -float((-x).kthvalue(rank).values)), max(0.0, float(x.kthvalue(rank).values))
        return within if within[0] < within[1] else (low, high)
    x = _thinned(x)
    levels = unsigned_levels(bits)

    def error(low: float, high: float) -> float:
        step = (high - low) / levels
        below = int(levels_below_zero(torch.tensor(-low / (high - low)), levels))
        return float((x - (x / step).round().clamp(-below, levels - below) * step).square().sum())

    if high > 0:
        high *= _best_share(lambda share: error(low, share * high))
    if low < 0:
        low *= _best_share(lambda share: error(share * low, high))
    return low, high


def _best_share(error: Callable[[float], float]) -> float:
    """The share of a limit with the least error, of evenly spaced ones."""
    return min(torch.linspace(1.0, _SMALLEST_SHARE, _CANDIDATES).tolist(), key=error)


def _thinned(x: Tensor) -> Tensor:
    most = _VALUES_PER_BATCH * 4
    return x[:: -(-x.numel() // most)] if x.numel() > most else x


def _subsample(x: Tensor) -> Tensor:
    """Evenly spaced values of a batch, and its extremes, so that memory stays bounded."""
    flat = x.detach().flatten().float()
    if flat.numel() <= _VALUES_PER_BATCH:
        return flat.clone()
    stride = -(-flat.numel() // _VALUES_PER_BATCH)
    return torch.cat([flat[::stride], flat.min()[None], flat.max()[None]])
