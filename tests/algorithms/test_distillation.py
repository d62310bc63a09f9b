# SPDX-License-Identifier: Apache-2.0
"""Distillation compares with the original network, and leaves no trace in what is exported."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.algorithms import CompressionController, create_compressed_model
from djpq_nncf.errors import ConfigError
from tests.helpers import NETWORKS, images

NOTHING_BY_ITSELF = {"pruning": {"gamma": 0}, "quantization": {"beta": 0}}


class Outputs(nn.Module):
    """Nested outputs of three shapes, and one that no parameter has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.conv(x).relu()
        tokens = features.flatten(2).transpose(1, 2)
        return {"logits": self.fc(features.mean((2, 3))), "more": (features, self.fc(tokens)), "positive": x > 0}


def compress(model: nn.Module, x: Tensor, **distillation: Any) -> CompressionController:
    entries = [{"algorithm": "knowledge_distillation", **distillation}, {"algorithm": "djpq", **NOTHING_BY_ITSELF}]
    controller, _ = create_compressed_model(model, {"compression": entries}, init_data=[x])
    return controller


def divergence(student: Tensor, target: Tensor, temperature: float, dim: int) -> Tensor:
    p, q = (target / temperature).softmax(dim), (student / temperature).softmax(dim)
    return temperature**2 * (p * (p.log() - q.log())).sum(dim).mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_softmax_of_every_output(temperature: float) -> None:
    x, model = images(4), Outputs().eval()
    controller = compress(model, x, type="softmax", scale=0.7, temperature=temperature)
    student, target = controller.model.train()(x), model(x)
    pairs = [
        (student["logits"], target["logits"], 1),
        (student["more"][0], target["more"][0], 1),
        (student["more"][1], target["more"][1], 2),
    ]
    expected = 0.7 * sum(divergence(a, b, temperature, dim) for a, b, dim in pairs)
    assert expected > 0
    torch.testing.assert_close(controller.loss(), expected)


def test_mse() -> None:
    x, model = images(4), NETWORKS["plain"]().eval()
    controller = compress(model, x, type="mse", scale=2.0)
    student = controller.model.train()(x)
    torch.testing.assert_close(controller.loss(), 2 * (student - model(x)).square().mean())


def test_gradients_reach_the_student_alone() -> None:
    x, model = images(4), NETWORKS["plain"]().train()
    before = copy.deepcopy(model.state_dict())
    controller = compress(model, x, type="softmax")
    controller.model.train()(x)
    controller.loss().backward()
    gradients = {name: p.grad for name, p in controller.model.named_parameters() if not name.startswith("compression")}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert list(controller.model.state_dict()) == list(create(model, x).model.state_dict())


def create(model: nn.Module, x: Tensor) -> CompressionController:
    config = {"compression": {"algorithm": "djpq", **NOTHING_BY_ITSELF}}
    return create_compressed_model(model, config, init_data=[x])[0]


def test_only_forward_passes_in_training_count_and_once() -> None:
    x = images(4)
    controller = compress(NETWORKS["plain"](), x, type="mse")
    assert controller.loss() == 0
    controller.model.eval()(x)
    assert controller.loss() == 0
    with torch.no_grad():
        controller.model.train()(x)
    assert controller.loss() == 0
    controller.model.train()(x)
    assert controller.loss() > 0
    assert controller.loss() == 0


def test_it_goes_on_after_the_freeze_and_ends_with_the_strip() -> None:
    x = images(4)
    controller = compress(NETWORKS["plain"](), x, type="mse")
    controller.freeze()
    assert controller.loss() == 0
    controller.model.train()(x)
    assert controller.loss() > 0
    assert not controller.strip()._forward_hooks


@pytest.mark.parametrize("others", [[], ["djpq", "other"]], ids=["alone", "two that compress"])
def test_exactly_one_algorithm_compresses(others: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"algorithm": "knowledge_distillation", "type": "mse"}]
    if others:
        from djpq_nncf.config import _schemas

        schema = {"type": "object", "properties": {"algorithm": {"const": "other"}}}
        monkeypatch.setitem(_schemas._registered, "other", (schema, None))
    config = {"compression": entries + [{"algorithm": name} for name in others]}
    with pytest.raises(ConfigError, match=f"that compress the list has {', '.join(others) or 'none'}; give one"):
        create_compressed_model(NETWORKS["plain"](), config, init_data=[images(4)])


def test_outputs_that_differ_in_number() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Any:
            return (self.fc(x), x) if self.training else self.fc(x)

    from djpq_nncf.algorithms._distillation import Distillation, DistillationSettings
    from djpq_nncf.errors import DataError

    model = Auxiliary()
    Distillation(model, model, DistillationSettings("mse", 1.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="returns 2 of them and in evaluation 1"):
        model.train()(torch.randn(2, 6))
