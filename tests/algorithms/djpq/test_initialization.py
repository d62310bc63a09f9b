# SPDX-License-Identifier: Apache-2.0
"""Ranges that quantizers start from."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.algorithms.djpq._initialization import (
    find_limits,
    find_range,
    initialize_range,
    initialize_weight_ranges,
)
from tests.helpers import images, insert_into, settings_of


def with_outlier() -> Tensor:
    """Normal values, and one far away."""
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    values[7] = -20.0
    return values


def estimate(values: Tensor, codes: tuple[int, int], **settings: Any) -> float:
    return find_range([values[:100], values[100:]], codes, settings_of(initializer={"range": settings}).initializer)


def squared_error(values: Tensor, largest: float, codes: tuple[int, int]) -> float:
    grid = np.arange(codes[0], codes[1] + 1) * (largest / codes[1])
    return float((np.abs(values.numpy()[:, None] - grid).min(axis=1) ** 2).sum())


@pytest.mark.parametrize("codes", [(-1, 1), (-2, 1), (-7, 7), (-8, 7), (-127, 127), (-128, 127)])
def test_least_squared_error(codes: tuple[int, int]) -> None:
    """No other share of the greatest value does noticeably better."""
    values = with_outlier()
    best = min(squared_error(values, largest, codes) for largest in np.linspace(0.05, 1.0, 200) * 20.0)
    assert squared_error(values, estimate(values, codes), codes) <= 1.01 * best


def test_extremes_and_percentiles() -> None:
    values = with_outlier()
    assert estimate(values, (-7, 7), type="min_max") == 20.0
    assert estimate(values, (-8, 7), type="min_max") == 17.5  # 8 steps of 2.5 below zero
    magnitudes = sorted(values.abs().tolist())
    assert estimate(values, (-7, 7), type="percentile", params={"percentile": 99.0}) == magnitudes[494]


@pytest.mark.parametrize(
    ("bits", "estimator", "whole"),
    [(8, "mse", True), (7, "mse", False), (4, "mse", False), (4, "min_max", True), (8, "percentile", False)],
)
def test_weights_of_8_bits_are_not_clipped(bits: int, estimator: str, whole: bool) -> None:
    """Unless a percentile is asked for."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        weight = model.get_parameter("2.weight")
        weight.copy_(with_outlier()[: weight.numel()].reshape(weight.shape))
    network = insert_into(model, images(), quantization={"weights": {"bits": bits}})
    settings = settings_of(initializer={"range": {"type": estimator, "params": {"percentile": 99.0}}}).initializer
    initialize_weight_ranges(network.model, network.weight_quantizers, bits, settings)
    reached = network.weight_quantizers["2.weight"].range().item()
    assert (reached == pytest.approx(20.0)) == whole


@pytest.mark.parametrize("estimator", ["mse", "min_max", "percentile"])
@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Hardswish(), nn.GELU()])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_asymmetric_grid_serves_small_negative_values(bits: int, activation: nn.Module, estimator: str) -> None:
    """Its step is about half of that of a symmetric one, and the error of rounding so about a quarter."""
    values = activation(torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 2)
    errors = []
    for mode, grid in (("auto", "asymmetric"), ("symmetric", "symmetric")):
        model = nn.Sequential(nn.Conv2d(3, 2, 1), activation, nn.Conv2d(2, 1, 1))
        network = insert_into(model, images(), quantization={"activations": {"mode": mode, "bits": bits}})
        quantizer = list(network.activation_quantizers.values())[1]
        assert quantizer.grid == grid
        ranges = {"type": estimator, "params": {"percentile": 99.9}}
        initializer = settings_of(initializer={"range": ranges}).initializer
        initialize_range(quantizer, [values[:100], values[100:]], bits, initializer)
        errors.append(float((quantizer(values) - values).detach().square().mean()))
    if bits == 4:  # of few negative levels there is an even number: sometimes none
        assert errors[0] < errors[1]
    else:
        assert errors[0] < (0.8 if estimator == "percentile" else 0.4) * errors[1]


@pytest.mark.parametrize("estimator", ["mse", "min_max", "percentile"])
@pytest.mark.parametrize("values", [torch.zeros(9), torch.full((9,), -2.0), torch.tensor([0.0, 3.0])])
def test_limits_of_one_sided_values(values: Tensor, estimator: str) -> None:
    low, high = find_limits([values], 8, settings_of(initializer={"range": {"type": estimator}}).initializer)
    assert low <= 0 <= high
    assert low < high
    assert low == pytest.approx(min(0, float(values.min())))
    if values.max() > 0:
        assert high == pytest.approx(float(values.max()))
