# SPDX-License-Identifier: Apache-2.0
"""Weight and activation quantizers: learned, restricted, fixed, frozen."""

import copy
import math

import pytest
import torch
from torch import nn

from djpq_nncf.errors import DataError
from djpq_nncf.nn import ActivationQuantizer, WeightQuantizer, quantize_activation
from tests.nn.helpers import KINDS, LOW_SHARE, learned_quantize, levels_of, make_quantizer


def _values(scale: float = 1.0, size: int = 20000) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)) * scale


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("bits", [2, 3.5, 6, 8, 16])
def test_initialize(kind: str, bits: float) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(0.37, bits)
    assert quantizer.range().item() == pytest.approx(0.37)
    assert quantizer.continuous_bits().item() == pytest.approx(bits, abs=1e-4)
    assert quantizer.bits is None
    if isinstance(quantizer, WeightQuantizer):
        assert quantizer.small_value.item() == pytest.approx(0.37e-6)


@pytest.mark.parametrize("q_m", [0.0, -1.0, 1e-30, 1e30])
def test_initialize_bounds_the_range(kind: str, q_m: float) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(q_m, 4)
    assert 1e-9 < quantizer.range().item() < 1e9
    assert torch.isfinite(quantizer(_values())).all()


@pytest.mark.parametrize("q_m", [math.nan, math.inf])
def test_initialize_refuses_nan_and_inf(kind: str, q_m: float) -> None:
    with pytest.raises(DataError, match="NaN or inf"):
        make_quantizer(kind).initialize_(q_m, 4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "asymmetric"])
def test_log_domain_gradients_follow_the_chain_rule(kind: str) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(1.5, 4)
    x = _values(size=500)
    quantizer(x).square().sum().backward()

    scalars = {
        "log_levels": quantizer.levels().detach().requires_grad_(),
        "log_scale": quantizer.log_scale.detach().exp().requires_grad_(),
    }
    exponent = quantizer.exponent()
    if exponent is not None:
        scalars["log_exponent"] = exponent.detach().requires_grad_()
    largest = scalars["log_scale"] * (1.2 + 0.62 * scalars["log_levels"].log())
    step = (largest - quantizer.threshold()) ** scalars.get("log_exponent", 1.0) / scalars["log_levels"]
    if kind == "symmetric":
        result = quantize_activation(x, step, -largest - step, largest)
    else:
        exponent = scalars.get("log_exponent")
        result = learned_quantize(x, step, largest, exponent, quantizer.threshold(), quantizer.symmetric)
    result.square().sum().backward()
    assert dict(quantizer.named_parameters()).keys() == scalars.keys()
    for name, parameter in quantizer.named_parameters():
        scalar = scalars[name]
        assert scalar.grad is not None
        torch.testing.assert_close(parameter.grad, scalar.grad * scalar.detach())


@pytest.mark.parametrize("bits", [None, 5])
def test_gradients_of_an_asymmetric_grid(bits: int | None) -> None:
    """Both limits move with the width, and against the share that is below zero; nothing between them does."""
    quantizer = make_quantizer("asymmetric")
    assert isinstance(quantizer, ActivationQuantizer) and quantizer.low_share is not None
    quantizer.initialize_(1.5, 5)
    if bits is not None:
        quantizer.fix_bits(bits)
    x = _values(size=500).requires_grad_()
    upstream = torch.rand(500, generator=torch.Generator().manual_seed(1))
    quantizer(x).backward(upstream)
    low, high = (limit.item() for limit in quantizer.limits(quantizer.step()))
    below, above = x.detach() < low, x.detach() > high
    assert torch.equal(x.grad, torch.where(below | above, 0, upstream))
    torch.testing.assert_close(quantizer.low_share.grad, -1.5 * upstream[below | above].sum())
    position = x.detach().clamp(low, high) / quantizer.step().detach()
    of_step = (upstream * (position.round() - position)).sum()
    of_range = 1.5 * ((1 - LOW_SHARE) * upstream[above].sum() - LOW_SHARE * upstream[below].sum())
    # A step is the range divided by the levels; the range is proportional to the scale, and grows with the levels.
    step = 1.5 / 31
    torch.testing.assert_close(quantizer.log_scale.grad, of_range + of_step * step)
    if bits is None:
        growth = 0.62 / (1.2 + 0.62 * math.log(31))
        torch.testing.assert_close(quantizer.log_levels.grad, of_range * growth + of_step * step * (growth - 1))


@pytest.mark.parametrize(("share", "codes"), [(0.0, (0, 15)), (1.0, (-14, 1)), (0.5, (-8, 7)), (0.1, (-2, 13))])
def test_zero_is_a_code_of_an_asymmetric_grid(share: float, codes: tuple[int, int]) -> None:
    """A runtime pads with zeros, and channels that are gone are zeros."""
    quantizer = ActivationQuantizer("asymmetric")
    quantizer.initialize_(3.0, 8, low_share=share)
    quantizer.fix_bits(4)
    assert quantizer.codes() == codes
    frozen = quantizer.freeze()
    assert (frozen.lowest, frozen.highest, frozen.bits) == (*codes, 4)
    x = torch.cat([torch.zeros(1), _values(4.0)])
    y = quantizer(x)
    assert y[0] == 0
    assert torch.equal(y, frozen(x))
    assert y.unique().numel() == 16


def test_share_below_zero_stays_a_share() -> None:
    for share, projected in ((-0.3, 0.0), (0.4, 0.4), (1.7, 1.0)):
        quantizer = ActivationQuantizer("asymmetric")
        assert quantizer.low_share is not None
        nn.init.constant_(quantizer.low_share, share)
        quantizer.project_()
        assert quantizer.low_share.item() == pytest.approx(projected)


def test_project_keeps_bits_range_and_exponent_within_limits(kind: str) -> None:
    for shift in (-60.0, -20.0, -3.0, 3.0, 20.0, 60.0):
        for moved in ("log_levels", "log_scale", "log_exponent"):
            quantizer = make_quantizer(kind)
            quantizer.initialize_(1.0, 6)
            parameter = dict(quantizer.named_parameters()).get(moved)
            if parameter is None:
                continue
            with torch.no_grad():
                parameter.add_(shift)
            quantizer.project_()
            assert 2 - 1e-4 <= quantizer.continuous_bits().item() <= 16 + 1e-4
            assert quantizer.range().item() > float(quantizer.threshold())
            exponent = quantizer.exponent()
            if exponent is not None:
                assert 0.3 - 1e-6 <= exponent.item() <= 2 + 1e-6
            assert torch.isfinite(quantizer(_values(size=100))).all()


def test_project_keeps_values_within_limits(kind: str) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(1.3, 5)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.project_()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("kind", "exponent"),
    [*((kind, 1.0) for kind in KINDS), ("weight_exponent", 0.3), ("weight_exponent", 2.0)],
)
def test_fixed_grid_fits_its_bits(kind: str, exponent: float, bits: int) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(0.73, 6)
    if isinstance(quantizer, WeightQuantizer) and quantizer.log_exponent is not None:
        nn.init.constant_(quantizer.log_exponent, math.log(exponent))
    quantizer.fix_bits(bits)
    x = _values()
    codes = quantizer.grid_codes(x)
    lowest, highest = levels_of(kind, bits)
    assert codes.dtype == torch.int64
    assert (codes.min(), codes.max()) == (lowest, highest) == quantizer.codes()
    assert codes.unique().numel() <= 2**bits - int(isinstance(quantizer, WeightQuantizer))

    quantized = quantizer.quantized(x)
    assert torch.equal(quantized, codes * quantizer.step())
    assert torch.equal(quantizer(x), quantized)
    frozen = quantizer.freeze()
    assert torch.equal(frozen(quantized), quantized)
    if isinstance(quantizer, ActivationQuantizer):
        assert torch.equal(frozen(x), quantized)
    assert quantizer.continuous_bits().item() == bits


@pytest.mark.parametrize("q_m", [1e-6, 0.3333, 7.77, 1e5])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_frozen_agrees_bit_for_bit_at_every_level(kind: str, bits: int, q_m: float) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(q_m, bits)
    quantizer.fix_bits(bits)
    x = torch.linspace(-1.2 * q_m, 1.2 * q_m, 3 * 2**bits + 1)
    quantized = quantizer.quantized(x)
    assert quantized.max() == quantizer.codes()[1] * quantizer.step()
    assert torch.equal(quantizer(x), quantized)
    assert torch.equal(quantizer.freeze()(quantized), quantized)


@pytest.mark.parametrize("bits", range(2, 33))
def test_frozen_agrees_up_to_32_bits(kind: str, bits: int) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(2.7, 8)
    quantizer.fix_bits(bits)
    x = _values()
    torch.testing.assert_close(quantizer.freeze()(quantizer.quantized(x)), quantizer(x))


def test_codes_stay_within_levels_where_float32_rounds_beyond(kind: str) -> None:
    for q_m in (0.1 * i for i in range(1, 40)):
        quantizer = make_quantizer(kind)
        quantizer.initialize_(q_m, 8)
        quantizer.fix_bits(24)
        lowest, highest = quantizer.codes()
        codes = quantizer.grid_codes(torch.tensor([-9.0, 9.0]))
        assert lowest <= codes.min() and codes.max() <= highest


@pytest.mark.parametrize("power_of_two", [False, True], ids=["any_bits", "power_of_two"])
def test_range_follows_the_bits(kind: str, power_of_two: bool) -> None:
    """As the best range of normally distributed values does."""
    ranges = []
    for bits in (2, 4, 8):
        quantizer = make_quantizer(kind, power_of_two=power_of_two)
        quantizer.initialize_(1.0, 8)
        with torch.no_grad():
            quantizer.log_levels.fill_(math.log(2.0 ** (bits - quantizer.symmetric) - 1))
        ranges.append(quantizer.range().item())
        quantizer.fix_bits(bits)
        assert quantizer.range().item() == pytest.approx(ranges[-1])
    levels = [2.0 ** (bits - quantizer.symmetric) - 1 for bits in (2, 4, 8)]
    best = [1.2 + 0.62 * math.log(level) for level in levels]
    assert ranges == pytest.approx([value / best[-1] for value in best])


def test_limit_of_the_range(kind: str) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(1.0, 4)
    quantizer.limit_range_(torch.tensor(2.0))
    assert quantizer.range().item() == pytest.approx(1.0)
    quantizer.limit_range_(torch.tensor(0.3))
    assert quantizer.range().item() == pytest.approx(0.3)
    quantizer.fix_bits(2)
    quantizer.limit_range_(torch.tensor(0.01))
    assert quantizer.range().item() == pytest.approx(0.01)


def test_a_range_that_follows_stays_within_its_bound() -> None:
    quantizer = ActivationQuantizer("unsigned", rectifies=6.0)
    quantizer.initialize_(6.0, 4)
    quantizer.fix_bits(8)
    assert quantizer.range().item() == pytest.approx(6.0)


def test_fixed_bits_leave_range_and_exponent_trainable(kind: str) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(1.0, 6)
    quantizer(_values()).sum().backward()
    quantizer.fix_bits(4)
    assert quantizer.bits == 4
    assert quantizer.log_levels.grad is None
    quantizer.zero_grad()
    quantizer(_values()).square().sum().backward()
    for name, parameter in quantizer.named_parameters():
        assert (parameter.grad is not None) == (name != "log_levels"), name
    with torch.no_grad():
        quantizer.log_scale.add_(0.5)
    quantizer.project_()
    assert quantizer.grid_codes(_values(100)).max() == quantizer.codes()[1]


@pytest.mark.parametrize("bits", [0, 1, 33])
def test_bits_that_cannot_be_fixed(kind: str, bits: int) -> None:
    with pytest.raises(ValueError, match=str(bits)):
        make_quantizer(kind).fix_bits(bits)


def test_learned_bits_cannot_be_frozen(kind: str) -> None:
    quantizer = make_quantizer(kind)
    for use in (quantizer.freeze, lambda: quantizer.grid_codes(_values()), quantizer.codes):
        with pytest.raises(RuntimeError, match="fix_bits"):
            use()


@pytest.mark.parametrize("limits", [(1, 8), (8, 4), (2, 33)])
def test_impossible_limits(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min <= max"):
        WeightQuantizer(min_bits=limits[0], max_bits=limits[1], learn_exponent=True)
    with pytest.raises(ValueError, match=r"\[5, 7\]"):
        WeightQuantizer(min_bits=5, max_bits=7, power_of_two=True)


@pytest.mark.parametrize("bits", [2.0, 2.5, 3.1, 5.0, 6.0, 9.0, 12.0, 16.0])
def test_algorithm_2(kind: str, bits: float) -> None:
    quantizer = make_quantizer(kind, power_of_two=True)
    quantizer.initialize_(0.9, bits)
    expected = 2 ** round(math.log2(bits))
    levels = 2 ** (expected - 1) - 1 if quantizer.symmetric else 2**expected - 1
    width = quantizer.range().item() - float(quantizer.threshold())
    assert quantizer.step().item() == pytest.approx(width / levels, rel=1e-5)
    assert quantizer.continuous_bits().item() == expected
    assert quantizer.range().item() == pytest.approx(0.9)

    # Forward only: the gradient arrives at the learned levels, and bits have the continuous gradient.
    unrestricted = make_quantizer(kind)
    unrestricted.load_state_dict(quantizer.state_dict())
    for result in ("levels", "continuous_bits"):
        gradients = [
            torch.autograd.grad(getattr(q, result)(), list(q.parameters()), allow_unused=True)
            for q in (quantizer, unrestricted)
        ]
        assert gradients[0] == gradients[1]


def test_restricted_grid_equals_the_fixed_one(kind: str) -> None:
    quantizer = make_quantizer(kind, power_of_two=True)
    quantizer.initialize_(0.9, 5)
    x = _values()
    restricted = quantizer(x).detach()
    quantizer.fix_bits(4)
    torch.testing.assert_close(restricted, quantizer(x).detach())


def test_power_of_two_respects_limits() -> None:
    quantizer = ActivationQuantizer("unsigned", min_bits=3, max_bits=8, power_of_two=True)
    quantizer.initialize_(1.0, 3)
    with torch.no_grad():
        quantizer.log_levels.sub_(10)
    assert quantizer.continuous_bits().item() == 4


def test_observing_and_disabled_pass_values_through(kind: str) -> None:
    quantizer = make_quantizer(kind)
    x = _values()
    seen: list[torch.Tensor] = []
    with quantizer.observe(seen.append):
        assert quantizer(x) is x
    assert len(seen) == 1
    assert seen[0] is x
    assert quantizer.observer is None
    assert not torch.equal(quantizer(x), x)


def test_fixed_state_survives_copies_and_checkpoints(kind: str) -> None:
    quantizer = make_quantizer(kind)
    quantizer.initialize_(0.9, 5)
    quantizer.fix_bits(5)
    x = _values()
    expected = quantizer(x)
    resumed = make_quantizer(kind)
    resumed.load_state_dict(quantizer.state_dict())
    for other in (copy.deepcopy(quantizer), resumed):
        assert other.bits == 5
        assert not other.log_levels.requires_grad
        assert torch.equal(other(x), expected)


def test_learned_state_loads_into_a_fixed_quantizer(kind: str) -> None:
    quantizer = make_quantizer(kind)
    quantizer.fix_bits(4)
    quantizer.load_state_dict(make_quantizer(kind).state_dict())
    assert quantizer.bits is None
    assert quantizer.log_levels.requires_grad


@pytest.mark.parametrize("fixed", [False, True], ids=["learned", "fixed"])
@pytest.mark.parametrize("power_of_two", [False, True], ids=["any_bits", "power_of_two"])
def test_compiles_to_one_graph(kind: str, fixed: bool, power_of_two: bool) -> None:
    quantizer = make_quantizer(kind, power_of_two=power_of_two)
    if fixed:
        quantizer.fix_bits(4)
    torch.compiler.reset()
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    x = _values(size=300).requires_grad_()
    wanted = [x, *(parameter for parameter in quantizer.parameters() if parameter.requires_grad)]
    results = [(y, *torch.autograd.grad(y.square().sum(), wanted)) for y in (quantizer(x), compiled(x))]
    torch.testing.assert_close(results[0], results[1])


def test_autocast(kind: str) -> None:
    quantizer = make_quantizer(kind)
    layer = nn.Linear(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if kind.startswith("weight"):
            y = nn.functional.linear(_values(size=8), quantizer(layer.weight))
        else:
            y = quantizer(layer(_values(size=8)))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    for parameter in (*quantizer.parameters(), layer.weight):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_parameter_types(kind: str, dtype: torch.dtype) -> None:
    quantizer = make_quantizer(kind)
    quantizer.fix_bits(8)
    quantizer.to(dtype)
    x = _values().to(dtype)
    assert quantizer(x).dtype == quantizer.quantized(x).dtype == dtype
    assert torch.equal(quantizer(x), quantizer.quantized(x))
    assert quantizer.grid_codes(x).max() == quantizer.codes()[1]
    quantizer(x).sum().backward()
