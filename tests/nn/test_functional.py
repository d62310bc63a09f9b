# SPDX-License-Identifier: Apache-2.0
"""The quantizer's equations, against formulas written independently."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from djpq_nncf.nn import bits_of, nearest_power_of_two, normal_range, unsigned_levels
from djpq_nncf.nn._functional import SLOPE_FLOOR, mapped_range
from tests.nn import reference
from tests.nn.helpers import learned_quantize

EXPONENTS = [0.3, 0.5, 0.8, 1.0, 1.3, 2.0]
STEP, RANGE, SMALL = 0.07, 0.9, 0.05


def _scalar(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def continuous_bits(d: Tensor, q_m: Tensor, t: Tensor | None, q_s: float = 0.0, signed: bool = True) -> Tensor:
    return bits_of(mapped_range(q_m, t, q_s) / d, signed)


def step_for_bits(bits: Tensor, q_m: Tensor, t: Tensor | None, q_s: float = 0.0, signed: bool = True) -> Tensor:
    return mapped_range(q_m, t, q_s) / unsigned_levels(bits - int(signed))


def _values(q_m: float, q_s: float) -> np.ndarray:
    """Random values, and those at and around q_s and q_m."""
    random = np.random.default_rng(0).normal(size=200) * q_m
    special = [0.0]
    for edge in (q_s, q_m):
        special += [edge, np.nextafter(edge, 0), np.nextafter(edge, 10), edge + 1e-6, max(edge - 1e-6, 0.0)]
    return np.concatenate([random, special, -np.array(special), [5 * q_m, -5 * q_m]])


def _run(x: np.ndarray, upstream: np.ndarray, t: float | None, q_s: float, signed: bool) -> tuple[np.ndarray, ...]:
    values = torch.tensor(x, requires_grad=True)
    scalars = [_scalar(STEP), _scalar(RANGE)] + ([] if t is None else [_scalar(t)])
    d, q_m = scalars[:2]
    result = learned_quantize(values, d, q_m, None if t is None else scalars[2], q_s, signed)
    gradients = torch.autograd.grad(result, [values, *scalars], torch.tensor(upstream))
    return result.detach().numpy(), *(gradient.numpy() for gradient in gradients)


@pytest.mark.parametrize("t", EXPONENTS)
def test_signed_equals_equations_2_and_5_to_7(t: float) -> None:
    x = _values(RANGE, SMALL)
    upstream = np.random.default_rng(1).normal(size=x.shape)
    result, grad_x, grad_d, grad_q_m, grad_t = _run(x, upstream, t, SMALL, signed=True)

    arguments = (x, STEP, RANGE, t, SMALL)
    floor = SLOPE_FLOOR * (RANGE - SMALL)
    np.testing.assert_allclose(result, reference.quantized(*arguments), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grad_d, (upstream * reference.gradient_d(*arguments)).sum(), rtol=1e-9)
    np.testing.assert_allclose(grad_q_m, (upstream * reference.gradient_q_m(*arguments)).sum(), rtol=1e-9)
    np.testing.assert_allclose(grad_t, (upstream * reference.gradient_t(*arguments)).sum(), rtol=1e-9)
    slope = reference.slope_x(x, RANGE, t, SMALL, floor)
    np.testing.assert_allclose(grad_x, upstream * slope, rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize("t", EXPONENTS)
@pytest.mark.parametrize("position", ["below_q_s", "at_q_s", "inside", "at_q_m", "beyond_q_m"])
@pytest.mark.parametrize("sign", [1, -1])
def test_single_values_around_the_edges(t: float, position: str, sign: int) -> None:
    value = {
        "below_q_s": np.nextafter(SMALL, 0),
        "at_q_s": SMALL,
        "inside": 0.4321,
        "at_q_m": RANGE,
        "beyond_q_m": np.nextafter(RANGE, 2),
    }[position]
    x = sign * np.array([value])
    result, grad_x, grad_d, grad_q_m, grad_t = _run(x, np.ones(1), t, SMALL, signed=True)
    arguments = (x, STEP, RANGE, t, SMALL)
    assert result == pytest.approx(reference.quantized(*arguments))
    assert grad_d == pytest.approx(reference.gradient_d(*arguments)[0], abs=1e-12)
    assert grad_q_m == pytest.approx(reference.gradient_q_m(*arguments)[0])
    assert grad_t == pytest.approx(reference.gradient_t(*arguments)[0])
    floor = SLOPE_FLOOR * (RANGE - SMALL)
    assert grad_x == pytest.approx(reference.slope_x(x, RANGE, t, SMALL, floor))


@pytest.mark.parametrize("q_s", [0.0, SMALL])
def test_no_exponent_is_exponent_one(q_s: float) -> None:
    x = _values(RANGE, SMALL)
    upstream = np.random.default_rng(1).normal(size=x.shape)
    result, grad_x, grad_d, grad_q_m = _run(x, upstream, None, q_s, signed=True)
    arguments = (x, STEP, RANGE, 1.0, q_s)
    np.testing.assert_allclose(result, reference.quantized(*arguments), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grad_d, (upstream * reference.gradient_d(*arguments)).sum(), rtol=1e-9)
    np.testing.assert_allclose(grad_q_m, (upstream * reference.gradient_q_m(*arguments)).sum(), rtol=1e-9)
    np.testing.assert_allclose(grad_x, upstream * reference.slope_x(x, RANGE, 1.0, q_s, 0.0))


def test_unsigned_ignores_negative_values() -> None:
    x = _values(RANGE, SMALL)
    upstream = np.random.default_rng(1).normal(size=x.shape)
    result, grad_x, grad_d, grad_q_m = _run(x, upstream, None, 0.0, signed=False)
    kept = upstream * (x >= 0)
    arguments = (np.maximum(x, 0), STEP, RANGE, 1.0, 0.0)
    np.testing.assert_allclose(result, reference.quantized(*arguments), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grad_d, (kept * reference.gradient_d(*arguments)).sum(), rtol=1e-9)
    np.testing.assert_allclose(grad_q_m, (kept * reference.gradient_q_m(*arguments)).sum(), rtol=1e-9)
    assert (grad_x[x < 0] == 0).all()
    inside = (x > 0) & (x <= RANGE)
    np.testing.assert_array_equal(grad_x[inside], upstream[inside])
    assert (grad_x[x > RANGE] == 0).all()


@pytest.mark.parametrize("t", [0.3, 0.5, 0.9])
def test_slope_stays_within_the_documented_bound(t: float) -> None:
    x = torch.tensor(_values(RANGE, SMALL), requires_grad=True)
    learned_quantize(x, _scalar(STEP), _scalar(RANGE), _scalar(t), SMALL).sum().backward()
    assert x.grad is not None
    bound = t * 100 ** (1 - t) * (RANGE - SMALL) ** (t - 1)
    assert x.grad.max().item() == pytest.approx(bound)
    assert bound <= 7.6 * (RANGE - SMALL) ** (t - 1)


def test_no_nan_or_inf_in_1000_random_settings() -> None:
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    for _ in range(500):
        q_m, t = 10 ** uniform(-6, 6), uniform(0.3, 2)
        q_s = q_m * 10 ** uniform(-6, -0.4)
        levels = 2 ** uniform(1, 31)
        scalars = [
            _scalar((q_m - q_s) ** t / levels, torch.float32),
            _scalar(q_m, torch.float32),
            _scalar(t, torch.float32),
        ]
        d, largest, exponent = scalars
        x = torch.randn(64, generator=generator) * q_m * 10 ** uniform(-3, 3)
        x[:8] = torch.tensor([0.0, -0.0, q_s, -q_s, q_m, -q_m, 1e30, 1e-40])
        x.requires_grad_()
        result = learned_quantize(x, d, largest, exponent, q_s)
        gradients = torch.autograd.grad(result.sum(), [x, *scalars])
        bits = continuous_bits(d, largest, exponent, q_s)
        for tensor in (result, *gradients, bits, *torch.autograd.grad(bits, scalars)):
            assert torch.isfinite(tensor).all(), (q_m, q_s, t, levels)


@pytest.mark.parametrize("t", [None, 0.6, 1.7])
def test_bits_gradient_equals_finite_differences(t: float | None) -> None:
    scalars = [_scalar(STEP), _scalar(RANGE)] + ([] if t is None else [_scalar(t)])

    def bits(d: Tensor, q_m: Tensor, exponent: Tensor | None = None) -> Tensor:
        return continuous_bits(d, q_m, exponent, SMALL)

    assert torch.autograd.gradcheck(bits, scalars)


def test_continuous_bits_round_up_to_equation_3() -> None:
    for levels in np.linspace(1.0, 130.0, 500):
        d = (RANGE - SMALL) ** 0.7 / levels
        bits = continuous_bits(_scalar(d), _scalar(RANGE), _scalar(0.7), SMALL).item()
        printed = math.log2(math.ceil(round(levels + 1, 9))) + 1
        assert bits <= printed + 1e-9
        assert printed - bits < math.log2((levels + 2) / (levels + 1)) + 1e-9


@pytest.mark.parametrize("bits", range(2, 9))
def test_unsigned_bits_count_the_values_of_the_grid_unlike_equation_4(bits: int) -> None:
    q_m = _scalar(RANGE)
    printed_step = _scalar(RANGE / 2**bits)  # eq. (4) calls this grid one of `bits` bits
    x = torch.linspace(0, RANGE, 5001, dtype=torch.float64)
    values = learned_quantize(x, printed_step, q_m, None, 0.0, False).unique().numel()
    assert values == 2**bits + 1
    assert continuous_bits(printed_step, q_m, None, 0.0, False).item() > bits
    fitting = step_for_bits(torch.tensor(bits), q_m, None, 0.0, False)
    assert learned_quantize(x, fitting, q_m, None, 0.0, False).unique().numel() == 2**bits
    assert continuous_bits(fitting, q_m, None, 0.0, False).item() == pytest.approx(bits)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("t", [None, 0.4, 1.6])
@pytest.mark.parametrize("bits", [2, 3, 5, 8, 16])
def test_step_for_bits_inverts_continuous_bits(signed: bool, t: float | None, bits: int) -> None:
    exponent = None if t is None else _scalar(t)
    step = step_for_bits(torch.tensor(bits), _scalar(RANGE), exponent, SMALL, signed)
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    assert step.item() == pytest.approx((RANGE - SMALL) ** (t or 1.0) / levels)
    assert continuous_bits(step, _scalar(RANGE), exponent, SMALL, signed).item() == pytest.approx(bits)
    as_tensor = step_for_bits(torch.tensor(float(bits)), _scalar(RANGE), exponent, SMALL, signed)
    assert as_tensor.item() == pytest.approx(step.item())


@pytest.mark.parametrize(("bits", "tolerance"), [(2, 0.04), (3, 0.04), (4, 0.04), (5, 0.04), (6, 0.04), (8, 0.08)])
def test_normal_range_has_the_least_squared_error(bits: int, tolerance: float) -> None:
    levels = 2 ** (bits - 1) - 1
    x = np.linspace(-8, 8, 100_001)
    density = np.exp(-(x**2) / 2)

    def error(largest: float) -> float:
        step = largest / levels
        return float((density * (x - np.clip(np.round(x / step), -levels, levels) * step) ** 2).sum())

    best = min(np.linspace(1, 5, 401), key=error)
    assert normal_range(torch.tensor(levels)).item() == pytest.approx(best, rel=tolerance)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(0.5, 2), (2.0, 2), (2.8, 2), (2.9, 4), (5.6, 4), (5.7, 8), (11.3, 8), (11.4, 16), (32.0, 32), (60, 32)],
)
def test_nearest_power_of_two(bits: float, expected: int) -> None:
    assert nearest_power_of_two(torch.tensor(float(bits))).item() == expected


def test_nearest_power_of_two_within_limits() -> None:
    assert nearest_power_of_two(torch.tensor(2.0), lowest=3, highest=9).item() == 4
    assert nearest_power_of_two(torch.tensor(30.0), lowest=3, highest=9).item() == 8
    with pytest.raises(ValueError, match=r"\[5, 7\]"):
        nearest_power_of_two(torch.tensor(6.0), lowest=5, highest=7)


@pytest.mark.parametrize("t", [None, 0.7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, t: float | None) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = []
    for values in (x.clone().requires_grad_(), x.float().requires_grad_()):
        scalars = [_scalar(v, torch.float32) for v in (STEP, RANGE, *([] if t is None else [t]))]
        result = learned_quantize(values, scalars[0], scalars[1], None if t is None else scalars[2], SMALL, True)
        assert result.dtype == values.dtype
        gradients.append((result, *torch.autograd.grad(result.sum(), [values, *scalars])))
    half, full = gradients
    for a, b in zip(half[:2], full[:2], strict=True):
        torch.testing.assert_close(a, b.to(dtype))
    for a, b in zip(half[2:], full[2:], strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)


def test_any_memory_layout() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    scalars = [_scalar(v, torch.float32) for v in (STEP, RANGE, 0.7)]
    d, q_m, t = scalars
    expected = torch.autograd.grad(learned_quantize(x, d, q_m, t, SMALL).square().sum(), scalars)
    strided = x.to(memory_format=torch.channels_last)
    actual = torch.autograd.grad(learned_quantize(strided, d, q_m, t, SMALL).square().sum(), scalars)
    torch.testing.assert_close(actual, expected)


def test_second_derivative_is_refused() -> None:
    x = torch.ones(3, requires_grad=True)
    result = learned_quantize(x, _scalar(0.1, torch.float32), _scalar(2.0, torch.float32), None)
    (gradient,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
