# SPDX-License-Identifier: Apache-2.0
"""The loss: equations (13), (16), (17) and (19) from the parameters alone."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from djpq_nncf.algorithms import create_compressed_model
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.nn import WeightQuantizer
from tests.helpers import NETWORKS, images

GAMMA, BETA, THRESHOLD, TEMPERATURE = 2e-3, 3e-7, 1e-3, 0.7


def make_controller(name: str = "projection_residual", **djpq: Any) -> DJPQController:
    config = {"compression": {"algorithm": "djpq", **djpq}}
    controller, _ = create_compressed_model(NETWORKS[name](), config, init_data=[images(8)])
    assert isinstance(controller, DJPQController)
    return controller


def paper(**schedule: Any) -> dict[str, Any]:
    return {
        "pruning": {"gamma": GAMMA, "threshold": THRESHOLD, "temperature": TEMPERATURE},
        "quantization": {"beta": BETA},
        "schedule": {"epochs": 10, "freeze_epoch": 8, "ramp": 0.5, **schedule},
    }


def spread(controller: DJPQController, seed: int = 0) -> None:
    """Away from the start, so that no two terms are the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(controller.model.named_parameters()):
            if "log_variance" in name:
                parameter.normal_(0, 3, generator=generator)
            elif name.endswith(".mu"):
                parameter.uniform_(-1.5, 1.5, generator=generator)
            elif "log_levels" in name:
                parameter.sub_(torch.rand((), generator=generator))


def expected_loss(controller: DJPQController, gamma: float, beta: float) -> float:
    """By hand for `projection_residual`: who reads whom is written down here."""
    state = {k: v.double() for k, v in controller.model.state_dict().items() if k.startswith("compression")}

    def gate(name: str) -> tuple[Tensor, Tensor]:
        return tuple(state[f"compression.gates.{name}.{part}"] for part in ("mu", "log_variance"))

    def penalty(name: str) -> float:
        mu, log_variance = gate(name)
        return float(torch.log(1 + mu**2 / log_variance.exp()).sum())

    def kept(name: str) -> float:
        mu, log_variance = gate(name)
        alpha = mu**2 / log_variance.exp()
        return float(torch.sigmoid((alpha.log() - math.log(THRESHOLD)) / TEMPERATURE).mean())

    def bits(kind: str, name: str, *, signed: bool) -> float:
        prefix = f"compression.{kind}_quantizers.{name}."
        if int(state[f"{prefix}fixed_bits"]):
            return int(state[f"{prefix}fixed_bits"])
        return float(torch.log2(state[f"{prefix}log_levels"].exp() + 1)) + signed

    layers = {  # rows, columns, MACs, activation quantizer, signed
        "stem": ("stem", None, 4 * 3 * 9 * 64, "x"),
        "conv1": ("conv1", "stem", 6 * 4 * 9 * 16, "relu"),
        "conv2": ("conv2", "conv1", 8 * 6 * 9 * 16, "relu_1"),
        "shortcut": ("conv2", "stem", 8 * 4 * 16, "relu"),
        "fc": (None, "conv2", 8 * 5, "relu_2"),
    }
    total = 0.0
    for layer, (rows, columns, macs, quantizer) in layers.items():
        share = (kept(rows) if rows else 1) * (kept(columns) if columns else 1)
        weight = bits("weight", f"{layer}_weight", signed=True)
        total += macs * share * weight * bits("activation", quantizer, signed=quantizer == "x")
    return gamma * sum(penalty(name) for name in ("stem", "conv1", "conv2")) + beta * total


@pytest.mark.parametrize("seed", range(3))
def test_equations_13_16_17(seed: int) -> None:
    controller = make_controller(**paper(ramp=0.0))
    spread(controller, seed)
    assert controller.loss().item() == pytest.approx(expected_loss(controller, GAMMA, BETA), rel=1e-4)


def test_both_terms_matter() -> None:
    controller = make_controller(**paper(ramp=0.0))
    spread(controller)
    gates, bops = expected_loss(controller, GAMMA, 0), expected_loss(controller, 0, BETA)
    assert 0.1 < gates / bops < 10


def test_annealing() -> None:
    """Algorithm 1: gamma and beta grow over the first half of eight epochs."""
    controller = make_controller(**paper())
    spread(controller)
    full = expected_loss(controller, GAMMA, BETA)
    factors = []
    for _ in range(6):
        controller.scheduler.epoch_step()
        factors.append(controller.loss().item() / full)
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-4)


@pytest.mark.parametrize(
    "djpq",
    [paper(ramp=0.0), {"pruning": {"criterion": "information_bottleneck"}}],
    ids=["strengths", "target"],
)
def test_gradients_reach_gates_and_quantizers(djpq: dict[str, Any]) -> None:
    controller = make_controller(**djpq)
    spread(controller)
    controller.loss().backward()
    without = {
        name
        for name, parameter in controller.model.named_parameters()
        if name.startswith("compression")
        and parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.any())
    }
    serves = {name for names in controller._network.placement.inputs_of.values() for name in names}
    unread = [name for name in controller._network.activation_quantizers if name not in serves]
    # bits cost, ranges do not
    expected = {f"compression.activation_quantizers.{name}.log_levels" for name in unread}
    assert {name for name in without if not name.endswith("log_scale")} == expected
    quantizers = [f"compression.activation_quantizers.{name}" for name in controller._network.activation_quantizers]
    quantizers += [name for name, module in controller.model.named_modules() if isinstance(module, WeightQuantizer)]
    assert without - expected == {f"{name}.log_scale" for name in quantizers}
    assert all(p.grad is None for n, p in controller.model.named_parameters() if not n.startswith("compression"))


@pytest.mark.parametrize("djpq", [paper(ramp=0.0), {}], ids=["strengths", "target"])
def test_gradient_descent_lowers_the_cost(djpq: dict[str, Any]) -> None:
    controller = make_controller(**djpq)
    controller.scheduler.epoch_step()
    before = controller.statistics().djpq.bops
    parameters = [p for n, p in controller.model.named_parameters() if n.startswith("compression")]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(30):
        controller.scheduler.step()
        optimizer.zero_grad()
        controller.loss().backward()
        optimizer.step()
    assert controller.statistics().djpq.bops < 0.9 * before


def test_loss_is_zero_once_frozen() -> None:
    controller = make_controller()
    controller.freeze()
    assert controller.loss().item() == 0


def test_strength_follows_the_target() -> None:
    """Above the set point it pulls harder than below."""
    near, far = (make_controller(target={"bops_ratio": ratio}, schedule={"ramp": 0.0}) for ratio in (0.06, 0.005))
    for controller in (near, far):
        controller.scheduler.epoch_step()
        for _ in range(5):
            controller.scheduler.step()
            controller.loss()
    assert near._strength is not None and far._strength is not None
    assert far._strength.strength > near._strength.strength


def test_deep_copy_of_the_model_is_independent() -> None:
    controller = make_controller()
    twin = copy.deepcopy(controller.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert controller.loss().item() != 0
    assert any(parameter.any() for parameter in controller.model.parameters())
