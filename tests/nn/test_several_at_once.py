# SPDX-License-Identifier: Apache-2.0
"""Gates and quantizers taken together are what they are one by one."""

import pytest
import torch

from djpq_nncf.nn import (
    ActivationQuantizer,
    Gate,
    Gates,
    LearnedQuantizer,
    Quantizers,
    WeightQuantizer,
)


def gates() -> list[Gate]:
    generator = torch.Generator().manual_seed(0)
    result = [Gate(size) for size in (1, 5, 3)]
    with torch.no_grad():
        for gate in result:
            gate.mu.copy_(torch.randn(gate.size, generator=generator) / 4)
            gate.log_variance.copy_(torch.randn(gate.size, generator=generator))
    result[1].close([0, 3])
    return result


def test_gates() -> None:
    ours = gates()
    together = Gates(ours)
    for of_all, one_by_one in (
        (together.penalty(), [Gates([gate]).penalty() for gate in ours]),
        (together.keep_probability(0.05, 0.7), [Gates([gate]).keep_probability(0.05, 0.7) for gate in ours]),
    ):
        torch.testing.assert_close(of_all, torch.cat(one_by_one))
        torch.testing.assert_close(together.mean(of_all), torch.stack([values.mean() for values in one_by_one]))


def test_gates_are_projected_each_by_its_own_scale() -> None:
    ours, alone = gates(), gates()
    Gates(ours).project_()
    for one, other in zip(ours, alone, strict=True):
        scale = min(1.0, float((other.mu.detach().abs() * other.open).max()))
        torch.testing.assert_close(one.mu.detach(), other.mu.detach() / scale)
        torch.testing.assert_close(one.log_alpha().detach(), other.log_alpha().detach(), atol=1e-5, rtol=0)


def test_noise_differs_between_gates_and_follows_the_seed() -> None:
    ours, same = gates(), gates()
    for each in (ours, same):
        Gates(each).sample_(torch.Generator().manual_seed(7))
    values = torch.cat([gate.noise for gate in ours])
    assert len(values.unique()) == len(values)
    assert torch.equal(values, torch.cat([gate.noise for gate in same]))


def test_no_gates() -> None:
    none = Gates([])
    none.project_()
    none.sample_(torch.Generator())
    assert none.mean(none.penalty()).shape == (0,)


def quantizers(*, power_of_two: bool) -> list[LearnedQuantizer]:
    result: list[LearnedQuantizer] = [
        WeightQuantizer(min_bits=2, max_bits=8, learn_exponent=True, power_of_two=power_of_two),
        WeightQuantizer(min_bits=4, max_bits=6, power_of_two=power_of_two),
        ActivationQuantizer("unsigned", min_bits=2, max_bits=16, power_of_two=power_of_two),
        ActivationQuantizer("symmetric", max_bits=8, power_of_two=power_of_two),
        ActivationQuantizer("asymmetric", max_bits=7, power_of_two=power_of_two),
    ]
    for quantizer, q_m, bits in zip(result, (0.7, 1.3, 5.0, 2.0, 0.9), (5.3, 4.4, 7.7, 3.1, 5.5), strict=True):
        quantizer.initialize_(q_m, bits)
    result[3].fix_bits(5)
    return result


@pytest.mark.parametrize("power_of_two", [False, True])
def test_bits(power_of_two: bool) -> None:
    ours = quantizers(power_of_two=power_of_two)
    bits = Quantizers(ours).continuous_bits()
    torch.testing.assert_close(bits, torch.stack([quantizer.continuous_bits() for quantizer in ours]))
    assert bits[3] == 5
    bits.sum().backward()
    assert all(quantizer.log_levels.grad for quantizer in ours[:3])
    assert not ours[3].log_levels.grad


@pytest.mark.parametrize("power_of_two", [False, True])
def test_limits(power_of_two: bool) -> None:
    ours, alone = quantizers(power_of_two=power_of_two), quantizers(power_of_two=power_of_two)
    with torch.no_grad():
        for each in (ours, alone):
            for quantizer, log_levels in zip(each, (40.0, -5.0, 20.0, 20.0, 20.0), strict=True):
                quantizer.log_levels.fill_(log_levels)
            each[0].log_scale.fill_(-30.0)
            assert each[0].log_exponent is not None
            each[0].log_exponent.fill_(3.0)
    Quantizers(ours).project_()
    for one, other in zip(ours, alone, strict=True):
        other.project_()
        for (name, value), expected in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")
    assert ours[3].log_levels == 20  # fixed bits: nothing depends on it
    widths = [float(q.continuous_bits().detach()) for q in ours]
    assert widths == pytest.approx([8, 4, 16, 5, 4 if power_of_two else 7], abs=1e-3)


@pytest.mark.parametrize("margin", [0.25, 3.0])
def test_margin(margin: float) -> None:
    """Learned widths stay above their least by it, but within their greatest; fixed ones are left alone."""
    ours = quantizers(power_of_two=False)
    with torch.no_grad():
        for quantizer in ours:
            quantizer.log_levels.fill_(-5.0)
    Quantizers(ours).project_(margin=margin)
    expected = [q.bits or min(q.min_bits + margin, q.max_bits) for q in ours]
    assert [float(q.continuous_bits().detach()) for q in ours] == pytest.approx(expected, abs=1e-3)
