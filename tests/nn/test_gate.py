# SPDX-License-Identifier: Apache-2.0
"""Gates: equations (10), (13), (18), (19)."""

import copy
import math

import pytest
import torch

from djpq_nncf.nn import Gate, Gates


def _gate() -> Gate:
    gate = Gate(4)
    with torch.no_grad():
        gate.mu.copy_(torch.tensor([1.0, -0.5, 0.1, 0.0]))
        gate.log_variance.copy_(torch.tensor([-6.0, -2.0, 0.0, 1.0]))
    return gate


def test_training_adds_noise_equation_10() -> None:
    gate = _gate().train()
    Gates([gate]).sample_(torch.Generator().manual_seed(3))
    noise = torch.randn(4, generator=torch.Generator().manual_seed(3))
    sigma = gate.log_variance.detach().exp().sqrt()
    torch.testing.assert_close(gate().detach(), gate.mu.detach() + noise * sigma)
    gate().sum().backward()
    torch.testing.assert_close(gate.mu.grad, torch.ones(4))
    torch.testing.assert_close(gate.log_variance.grad, noise * sigma / 2)


def test_noise_is_standard_normal_and_drawn_anew() -> None:
    gate = Gate(20000)
    generator = torch.Generator().manual_seed(0)
    Gates([gate]).sample_(generator)
    first = gate.noise.clone()
    Gates([gate]).sample_(generator)
    assert not torch.equal(first, gate.noise)
    assert abs(gate.noise.mean().item()) < 0.03
    assert abs(gate.noise.std().item() - 1) < 0.03
    assert "noise" not in gate.state_dict()


def test_eval_and_frozen_have_no_noise() -> None:
    gate = _gate()
    Gates([gate]).sample_(torch.Generator().manual_seed(3))
    assert torch.equal(gate.eval()(), gate.mu)
    gate.train().freeze()
    assert torch.equal(gate(), gate.mu)
    assert not gate.mu.requires_grad
    assert not gate.log_variance.requires_grad


def test_closed_channels_are_exactly_zero() -> None:
    gate = _gate()
    Gates([gate]).sample_(torch.Generator().manual_seed(3))
    gate.close([1, 3])
    for mode in (gate.train(), gate.eval()):
        z = mode()
        assert (z[[1, 3]] == 0).all()
        assert (z[[0, 2]] != 0).all()
    gate.train()().sum().backward()
    assert gate.mu.grad is not None
    assert gate.mu.grad.tolist() == [1, 0, 1, 0]
    assert Gates([gate]).penalty()[1] == 0
    assert Gates([gate]).keep_probability(1e-3, 1.0)[1] == 0


def test_penalty_equation_13() -> None:
    gate = _gate()
    mu, variance = gate.mu.detach().double(), gate.log_variance.detach().double().exp()
    expected = torch.log(1 + mu**2 / variance)
    torch.testing.assert_close(Gates([gate]).penalty().detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_penalty_is_stable() -> None:
    gate = Gate(5)
    with torch.no_grad():
        gate.mu.copy_(torch.tensor([0.0, 1e-20, 1e10, 1.0, 1.0]))
        gate.log_variance.copy_(torch.tensor([0.0, -60.0, -60.0, -200.0, 200.0]))
    for value in (Gates([gate]).penalty(), Gates([gate]).keep_probability(1e-3, 0.5)):
        gradients = torch.autograd.grad(value.sum(), [gate.mu, gate.log_variance])
        for tensor in (value, *gradients):
            assert torch.isfinite(tensor).all()


def test_hard_decision_equation_18() -> None:
    gate = _gate()
    alpha = gate.mu.detach() ** 2 / gate.log_variance.detach().exp()  # 403, 1.8, 0.01, 0
    for threshold in (1e-3, 0.1, 2.0, 1e3):
        assert gate.below(threshold).tolist() == (alpha < threshold).tolist()
    gate.close([0])
    assert gate.below(1e-3).tolist() == [True, False, False, True]


def test_keep_probability_is_equation_19_counting_the_kept() -> None:
    gate = _gate()
    log_alpha = 2 * torch.log(gate.mu.detach().abs()) - gate.log_variance.detach()
    expected = torch.sigmoid((log_alpha - math.log(0.05)) / 0.7)
    torch.testing.assert_close(Gates([gate]).keep_probability(0.05, 0.7).detach(), expected)
    # A low temperature turns it into the hard decision of eq. (18).
    hard = Gates([gate]).keep_probability(0.05, 1e-3)
    assert hard.tolist() == pytest.approx((~gate.below(0.05)).float().tolist())


def test_soft_decision_has_a_gradient_far_from_the_threshold() -> None:
    gate = Gate(1, log_variance=-9.0)  # alpha is 8103
    Gates([gate]).keep_probability(1e-3, 1.0).sum().backward()
    assert gate.log_variance.grad is not None
    assert gate.log_variance.grad.item() < -1e-8


@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, 1, 2, 3], "at least one of 4"), ([4], r"\[4\].*0 to 3"), ([-1], r"\[-1\]")],
)
def test_close_refuses(indices: list[int], message: str) -> None:
    gate = _gate()
    with pytest.raises(ValueError, match=message):
        gate.close(indices)
    assert gate.open.all()


def test_last_channel_stays_open() -> None:
    gate = _gate()
    gate.close(torch.tensor([0, 1, 2]))
    gate.close([])
    with pytest.raises(ValueError, match="at least one"):
        gate.close([3])
    assert gate.open.tolist() == [False, False, False, True]


def test_a_gate_needs_channels() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Gate(0)


def test_state_survives_copies_and_checkpoints() -> None:
    gate = _gate()
    gate.close([2])
    gate.freeze()
    resumed = Gate(4)
    resumed.load_state_dict(gate.state_dict())
    for other in (copy.deepcopy(gate), resumed):
        assert other.is_frozen
        assert not other.log_variance.requires_grad
        assert torch.equal(other.train()(), gate.mu * gate.open)


def test_compiles_to_one_graph() -> None:
    gate = _gate().train()
    Gates([gate]).sample_(torch.Generator().manual_seed(3))
    compiled = torch.compile(gate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), gate())
    Gates([gate]).sample_(torch.Generator().manual_seed(4))
    torch.testing.assert_close(compiled(), gate())


def test_a_common_factor_of_the_means_is_undone() -> None:
    gate = Gate(3, log_variance=-2.0)
    gate.mu.data = torch.tensor([0.25, -0.5, 0.1])
    before, penalty = gate.log_alpha().detach().clone(), Gates([gate]).penalty().detach().clone()
    Gates([gate]).project_()
    torch.testing.assert_close(gate.mu.detach(), torch.tensor([0.5, -1.0, 0.2]))
    torch.testing.assert_close(gate.log_alpha().detach(), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(Gates([gate]).penalty().detach(), penalty, atol=1e-5, rtol=0)


def test_a_mean_above_one_is_left_alone() -> None:
    gate = Gate(2)
    gate.mu.data = torch.tensor([1.5, 0.1])
    Gates([gate]).project_()
    torch.testing.assert_close(gate.mu.detach(), torch.tensor([1.5, 0.1]))


def test_channels_closed_by_hand_do_not_hold_the_scale() -> None:
    gate = Gate(3)
    gate.close([0])
    gate.mu.data = torch.tensor([1.0, 0.25, -0.5])
    Gates([gate]).project_()
    torch.testing.assert_close(gate.mu.detach()[1:], torch.tensor([0.5, -1.0]))
