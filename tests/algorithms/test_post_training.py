# SPDX-License-Identifier: Apache-2.0
"""Compression from a few samples without labels: within the target, nearer to the original, and exportable."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from djpq_nncf import CompressionStage, compress_post_training, create_compressed_model, verify_export
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.errors import ConfigError, DataError
from tests.hardware import OVERFLOW_FIX
from tests.helpers import SIZE, images, randomize


class Net(nn.Module):
    """BatchNorm, a residual sum, a bias of its own; an output for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.plain = nn.Conv2d(16, 24, 1)
        self.head = nn.Conv2d(24, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.inner(x) + x)
        return self.head(F.relu(self.plain(x)))


class Shared(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x).relu()).relu().mean((2, 3)))


def fixed(bits: int) -> dict[str, Any]:
    return config(pruning={"enabled": False}, quantization={"weights": {"bits": bits}, "activations": {"bits": bits}})


def config(**djpq: Any) -> dict[str, Any]:
    return {"compression": {"algorithm": "djpq", **djpq}}


def data(seed: int = 1) -> list[Tensor]:
    return [images(32, seed=seed + number) for number in range(4)]


def error(model: nn.Module, original: nn.Module, draw: Callable[..., Tensor] = images) -> float:
    """Relative to the variance of the original's outputs, on other samples."""
    x = draw(128, seed=50)
    with torch.no_grad():
        wanted = original.eval()(x)
        return float((model.eval()(x) - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


def smooth(batch: int, *, seed: int) -> Tensor:
    """Noise whose neighbouring pixels are alike, as those of an image are."""
    return F.interpolate(images(batch, 2, seed=seed), size=SIZE, mode="bilinear")


# On white noise rounding to the nearest is nearly the best that can be done, and what reconstruction gains in it is
# less than what the order of a CPU's sums decides.
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_reconstruction_brings_the_outputs_nearer(bits: int) -> None:
    original = randomize(Net())
    samples = [smooth(32, seed=seed) for seed in range(16)]
    _, rounded = compress_post_training(original, fixed(bits), samples, reconstruction_steps=0)
    _, tuned = compress_post_training(original, fixed(bits), samples)
    assert error(tuned, original, smooth) < 0.9 * error(rounded, original, smooth)


def test_the_model_given_stays_and_the_result_is_repeatable() -> None:
    original = randomize(Net())
    before = copy.deepcopy(original.state_dict())
    results = [compress_post_training(original, config(target={"bops_ratio": 0.02}), data(), search_steps=20,
                                      reconstruction_steps=20)[1].state_dict() for _ in range(2)]  # fmt: skip
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])


@pytest.mark.filterwarnings("ignore:The frozen network has")
@pytest.mark.parametrize("ratio", [0.05, 0.015])
def test_the_target_holds_and_files_compute_the_same(ratio: float, tmp_path: Path) -> None:
    original = randomize(Net())
    ctrl, model = compress_post_training(
        original,
        config(target={"bops_ratio": ratio}, quantization={"overflow_fix": OVERFLOW_FIX}),
        data(),
        search_steps=100,
        reconstruction_steps=20,
    )
    assert ctrl.compression_stage() is CompressionStage.FULLY_COMPRESSED
    assert 0.8 * ratio <= ctrl.statistics().djpq.bops_ratio <= ratio
    assert not model.training
    ctrl.export_model(tmp_path / "net.xml")
    found = verify_export(tmp_path / "net.xml", ctrl.strip(), images(16, seed=9))
    assert found.max_relative_difference < 0.05


def test_the_search_finds_better_widths_than_none() -> None:
    original = randomize(Net())
    asked = config(target={"bops_ratio": 0.01}, pruning={"enabled": False})
    errors = [
        error(compress_post_training(original, asked, data(), search_steps=steps, reconstruction_steps=0)[1], original)
        for steps in (0, 300)
    ]
    assert errors[1] < errors[0]


def test_layers_that_share_a_weight() -> None:
    original = randomize(Shared())
    _, rounded = compress_post_training(original, fixed(3), data(), reconstruction_steps=0)
    _, tuned = compress_post_training(original, fixed(3), data())
    assert error(tuned, original) <= error(rounded, original)


def test_a_layer_that_gets_no_better_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("djpq_nncf.algorithms.djpq._reconstruction._RATE", 1e3)
    original = randomize(Net())
    _, rounded = compress_post_training(original, fixed(4), data(), reconstruction_steps=0)
    _, tuned = compress_post_training(original, fixed(4), data(), reconstruction_steps=5)
    for name, value in rounded.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value)


def test_outputs_are_compared_as_the_config_says() -> None:
    entries = [
        {"algorithm": "djpq", "target": {"bops_ratio": 0.02}},
        {"algorithm": "knowledge_distillation", "type": "softmax", "temperature": 2},
    ]
    ctrl, _ = compress_post_training(
        randomize(Net()), {"compression": entries}, data(), search_steps=5, reconstruction_steps=0
    )
    assert ctrl.terms == []
    assert float(ctrl.loss()) == 0


def test_training_goes_on_from_there() -> None:
    ctrl, model = compress_post_training(randomize(Net()), fixed(4), data(), reconstruction_steps=1)
    optimizer = torch.optim.SGD(ctrl.param_groups(lr=1e-2))
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.train()
    ctrl.scheduler.epoch_step()
    ctrl.scheduler.step()
    loss = F.cross_entropy(model(images(8)).mean((2, 3)), torch.arange(8)) + ctrl.loss()
    loss.backward()
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert ctrl.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_unusable_data_is_named() -> None:
    with pytest.raises(DataError, match="NaN"):
        compress_post_training(randomize(Net()), fixed(4), [torch.full((4, 3, 16, 16), torch.nan)])


def test_another_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match="algorithm"):
        compress_post_training(randomize(Net()), {"compression": {"algorithm": "other"}}, data())


@pytest.mark.parametrize("key", ["pruning", "schedule"])
def test_a_broken_entry_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\$.compression.{key}: 3"):
        compress_post_training(randomize(Net()), config(**{key: 3}), data())


def test_the_criterion_is_one_that_needs_no_likelihood() -> None:
    asked = config(target={"bops_ratio": 0.02}, pruning={"criterion": None, "initial_log_variance": -5})
    ctrl, _ = compress_post_training(randomize(Net()), asked, data(), search_steps=2, reconstruction_steps=0)
    assert "gates" in [group["name"] for group in ctrl.param_groups(lr=1e-3)]


def test_reconstruction_wants_a_frozen_network() -> None:
    ctrl, _ = create_compressed_model(randomize(Net()), fixed(4), init_data=data())
    assert isinstance(ctrl, DJPQController)
    with pytest.raises(RuntimeError, match="freeze"):
        ctrl.reconstruct(ctrl.reference(), data())
