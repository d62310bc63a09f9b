# SPDX-License-Identifier: Apache-2.0
"""Which channels go by the Fisher criterion."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from djpq_nncf.algorithms import create_compressed_model
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.errors import ConfigError

WIDTH = 6


class TwoLayers(nn.Module):
    """A hidden layer, of which channel 2 is read by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(WIDTH, 4, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight[:, 2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x))).mean((2, 3))

    def scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        """The same with a factor on each hidden channel."""
        return self.conv2(F.relu(self.conv1(x)) * factor[:, None, None]).mean((2, 3))


def data(batches: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(batches)
    ]


def compress(model: nn.Module, **djpq: Any) -> tuple[DJPQController, nn.Module]:
    entry = {"algorithm": "djpq", "target": {"macs_ratio": 0.5}, "quantization": {"enabled": False}, **djpq}
    controller, compressed = create_compressed_model(model, {"compression": entry}, init_data=data())
    assert isinstance(controller, DJPQController)
    return controller, compressed


def one_step(controller: DJPQController, model: nn.Module, batch: tuple[Tensor, Tensor], scale: float = 1.0) -> None:
    controller.scheduler.step()
    loss = F.cross_entropy(model(batch[0]), batch[1]) + controller.loss()
    (scale * loss).backward()


@pytest.mark.parametrize("scale", [1.0, 1024.0], ids=["plain", "scaled loss"])
def test_information_is_the_squared_derivative(scale: float) -> None:
    """By central differences of the original's loss, whatever a loss scaler multiplies."""
    original = TwoLayers()
    controller, model = compress(original)
    original.double()
    controller.scheduler.epoch_step()
    x, y = data(1)[0]
    one_step(controller, model, (x, y), scale)
    derivatives = []
    for channel in range(WIDTH):
        values = []
        for change in (1e-5, -1e-5):
            factor = torch.ones(WIDTH, dtype=torch.float64)
            factor[channel] += change
            values.append(F.cross_entropy(original.scaled(x.double(), factor), y))
        derivatives.append((values[0] - values[1]) / 2e-5)
    (gate,) = controller._network.gates.values()
    expected = len(x) * torch.stack(derivatives).detach().square().float()
    assert controller._fisher is not None
    torch.testing.assert_close(gate.information / controller._fisher._weight, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("kind", "scale", "likelihoods"), [("softmax", 3.0, 4.0), ("mse", 3.0, 1.0)])
def test_a_teacher_is_another_likelihood(kind: str, scale: float, likelihoods: float) -> None:
    """A loss that is n times a negative log-likelihood has n times its curvature, and n^2 times its squares."""
    entries = [
        {"algorithm": "djpq", "target": {"macs_ratio": 0.5}, "quantization": {"enabled": False}},
        {"algorithm": "knowledge_distillation", "type": kind, "scale": scale},
    ]
    original = TwoLayers()
    controller, model = create_compressed_model(original, {"compression": entries}, init_data=data())
    assert isinstance(controller, DJPQController)
    with torch.no_grad():
        model.get_parameter("conv2.weight").mul_(1.5)  # another network than its teacher
    (gate,) = controller._network.gates.values()
    controller.scheduler.epoch_step()
    x, y = data(1)[0]
    one_step(controller, model, (x, y))
    assert controller._fisher is not None
    found = gate.information / controller._fisher._weight
    alone = TwoLayers()
    alone.load_state_dict({name: model.state_dict()[name] for name in alone.state_dict()})
    factor = torch.ones(WIDTH, requires_grad=True)
    logits, teacher = alone.scaled(x, factor), original(x).detach()
    distance = (
        F.mse_loss(logits, teacher)
        if kind == "mse"
        else F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
    )
    (derivative,) = torch.autograd.grad(F.cross_entropy(logits, y) + scale * distance, factor)
    torch.testing.assert_close(found, len(x) * derivative.square() / likelihoods, rtol=1e-4, atol=1e-9)


def test_noise_of_the_search() -> None:
    """On open channels, another in each step, of the deviation asked for; none where no bit-width is learned."""

    def factors(**djpq: Any) -> tuple[DJPQController, Tensor]:
        controller, model = compress(TwoLayers(), target={"bops_ratio": 0.02}, **djpq)
        model.train()
        (gate,), (group,) = controller._network.gates.values(), controller.groups.values()
        group.close([2])
        drawn = []
        for _ in range(400):
            controller.scheduler.step()
            drawn.append(gate().detach().clone())
        assert torch.equal(gate.eval()(), gate.open.float())
        gate.train()
        return controller, torch.stack(drawn)

    controller, drawn = factors(quantization={}, pruning={"noise": 0.3})
    others = [0, 1, 3, 4, 5]
    assert not drawn[:, 2].any()
    assert drawn[:, others].std().item() == pytest.approx(0.3, rel=0.1)
    assert drawn[:, others].mean().item() == pytest.approx(1.0, abs=0.03)
    controller.freeze()
    (gate,) = controller._network.gates.values()
    assert torch.equal(gate(), gate.open.float())
    assert factors(quantization={}, pruning={"noise": 0.5})[1][:, others].std().item() == pytest.approx(0.5, rel=0.1)
    fixed = {"weights": {"bits": 4}, "activations": {"bits": 4}}
    unwanted: tuple[dict[str, Any], ...] = ({"quantization": {}}, {"quantization": fixed, "pruning": {"noise": 0.3}})
    for quiet in unwanted:
        assert factors(**quiet)[1][:, others].eq(1).all()


def test_what_does_no_harm_goes_first_and_factors_stay() -> None:
    controller, model = compress(TwoLayers(), schedule={"epochs": 12, "freeze_epoch": 11})
    optimizer = torch.optim.Adam(controller.param_groups(lr=1e-4))
    assert [group["name"] for group in controller.param_groups(lr=1e-4)] == ["weights"]
    (group,), (gate,) = controller.groups.values(), controller._network.gates.values()
    gone: list[set[int]] = []
    for _ in range(12):
        controller.scheduler.epoch_step()
        for batch in data():
            optimizer.zero_grad()
            one_step(controller, model, batch)
            optimizer.step()
            assert gate.mu.grad is None or not gate.mu.grad.any(), "no clipping of gradients sees it"
            gone.append(set(range(WIDTH)) - set(group.open_channels))
    first = next(closed for closed in gone if closed)
    assert first == {2}
    assert torch.equal(gate.mu, torch.ones(WIDTH))
    assert len(gone[-1]) == WIDTH // 2


def test_before_the_freeze_only_closed_channels_count_as_gone() -> None:
    """However little harm the others would do: the freeze closes them no more."""
    controller, _ = compress(TwoLayers())
    ((name, group),) = controller.groups.items()
    with torch.no_grad():
        controller._network.gates[name].log_variance.fill_(20.0)
    assert controller.statistics().djpq.ratios["macs_ratio"] == 1
    group.close([0])
    assert controller.statistics().djpq.ratios["macs_ratio"] == pytest.approx((WIDTH - 1) / WIDTH)


def test_it_needs_a_target() -> None:
    with pytest.raises(ConfigError, match="criterion"):
        compress(TwoLayers(), target={}, pruning={"criterion": "fisher", "gamma": 0.1})


def joint_phase(controller: DJPQController, model: nn.Module, epochs: int) -> None:
    optimizer = torch.optim.Adam(controller.param_groups(lr=1e-4))
    for _ in range(epochs):
        controller.scheduler.epoch_step()
        for batch in data():
            optimizer.zero_grad()
            one_step(controller, model, batch)
            optimizer.step()


@pytest.mark.parametrize(("epochs", "quiet"), [(3, 6), (12, 20), (90, 30)], ids=["half", "twenty steps", "a twelfth"])
def test_nothing_goes_while_the_strength_settles(epochs: int, quiet: int) -> None:
    """Of a joint phase of 12, 48 or 360 steps."""
    controller, model = compress(
        TwoLayers(), schedule={"epochs": epochs + 1, "freeze_epoch": epochs}, pruning={"threshold": 1e12}
    )
    (group,) = controller.groups.values()
    steps = 0
    controller.scheduler.epoch_step()
    while len(group.open_channels) == WIDTH:
        for batch in data():
            one_step(controller, model, batch)
            steps += len(group.open_channels) == WIDTH
        controller.scheduler.epoch_step()
    assert quiet - 1 <= steps <= quiet + 360 // 64, "a step's update comes at its beginning"


def test_nothing_goes_that_is_worth_more_than_it_costs() -> None:
    controller, model = compress(TwoLayers(), schedule={"epochs": 13, "freeze_epoch": 12}, pruning={"threshold": 2e-5})
    joint_phase(controller, model, 12)
    (group,) = controller.groups.values()
    assert set(range(WIDTH)) - set(group.open_channels) == {2}, "what is read by nothing is worth nothing"


def test_no_more_goes_than_the_budget_asks_for() -> None:
    controller, model = compress(TwoLayers(), schedule={"epochs": 13, "freeze_epoch": 12}, pruning={"threshold": 1e12})
    joint_phase(controller, model, 12)
    (group,) = controller.groups.values()
    assert len(group.open_channels) == WIDTH // 2


def test_what_it_closed_is_told_from_what_was_closed_by_hand() -> None:
    controller, model = compress(TwoLayers(), schedule={"epochs": 13, "freeze_epoch": 12})
    ((name, group),) = controller.groups.items()
    group.close([5])
    joint_phase(controller, model, 12)
    gone = set(range(WIDTH)) - set(group.open_channels)
    assert {2, 5} < gone
    closed = controller.get_compression_state()["fisher"]["closed"][name]
    assert set(closed) == gone - {5}
    resumed, _ = compress(TwoLayers(), schedule={"epochs": 13, "freeze_epoch": 12})
    resumed.load_state(controller.get_compression_state())
    assert resumed.get_compression_state()["fisher"] == controller.get_compression_state()["fisher"]


def test_a_channel_costs_more_where_fewer_are_left() -> None:
    """All MACs of this network are of the one group."""
    controller, _ = compress(TwoLayers())
    (group,) = controller.groups.values()
    for closed in ([], [0], [1, 3]):
        if closed:
            group.close(closed)
        share = controller._objective.channel_shares(controller._settings.target)
        assert share.tolist() == pytest.approx([1 / len(group.open_channels)])


@pytest.mark.parametrize(
    ("pruning", "least"),
    [
        ({}, 2.25),
        ({"bit_margin": 0.5}, 2.5),
        ({"bit_margin": 6}, 8.0),
        ({"enabled": False}, 2.0),
        ({"criterion": "information_bottleneck"}, 2.0),
    ],
    ids=["default", "half a bit", "all bits", "bits alone", "learned gates"],
)
@pytest.mark.filterwarnings("ignore:The frozen network")
def test_bits_stay_above_their_least_while_channels_may_go(pruning: dict[str, Any], least: float) -> None:
    controller, _model = compress(
        TwoLayers(), target={"bops_ratio": 1 / 100}, quantization={}, pruning=pruning, schedule={"epochs": 2}
    )
    controller.scheduler.epoch_step()
    for quantizer in controller._bits.quantizers.values():
        with torch.no_grad():
            quantizer.log_levels.zero_()
    controller.scheduler.step()
    learned = [quantizer for quantizer in controller._bits.quantizers.values() if quantizer.bits is None]
    assert learned
    for quantizer in learned:
        assert float(quantizer.continuous_bits().detach()) == pytest.approx(least, abs=1e-3)
    controller.freeze()
    assert 2 in {quantizer.bits for quantizer in learned}


@pytest.mark.parametrize("key", ["bops_ratio", "size_ratio"])
@pytest.mark.parametrize("above_least", [1.001, 2.0, 6.0, 20.0])
def test_usual_margin_leaves_an_eighth_to_channels(key: str, above_least: float) -> None:
    """Of what they can save below a target so many times the least; by hand, for inputs of 8 bits."""

    def used(channels: int, bits: float) -> float:
        if key == "size_ratio":
            return bits * channels / (32 * WIDTH)
        return (3 * channels * 8 * bits + 4 * channels * bits**2) / (7 * WIDTH * 32 * 32)

    ratio = above_least * used(1, 2)
    can_be_saved = math.log(min(ratio, used(WIDTH, 2)) / used(1, 2))
    share = can_be_saved / math.log(used(WIDTH, 2.25) / used(WIDTH, 2)) / 8
    controller, _model = compress(TwoLayers(), target={key: ratio}, quantization={}, schedule={"epochs": 2})
    controller.scheduler.epoch_step()
    for quantizer in controller._bits.quantizers.values():
        with torch.no_grad():
            quantizer.log_levels.zero_()
    controller.scheduler.step()
    (weight,) = (q for name, q in controller._bits.quantizers.items() if name == "weight of conv2")
    assert float(weight.continuous_bits().detach()) == pytest.approx(2 + 0.25 * min(share, 1), abs=1e-4)


def test_usual_margin_is_small_where_few_channels_may_go() -> None:
    """4 of 64, in blocks of 60; by hand."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 1)
    controller, _model = compress(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        target={"bops_ratio": 1 / 100},
        quantization={},
        pruning={"target_scopes": ["2"], "round_to": 60},
    )

    def used(channels: int, bits: float) -> float:
        return 16 * 27 * 4 * 8 * bits + (4 * 36 * channels + 4 * channels * 4) * bits**2

    share = math.log(used(64, 2) / used(60, 2)) / math.log(used(64, 2.25) / used(64, 2)) / 8
    assert controller._fisher is not None
    assert controller._fisher.bit_margin == pytest.approx(0.25 * share)
