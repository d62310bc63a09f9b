# SPDX-License-Identifier: Apache-2.0
"""Every architecture: the captured graph does what the model does."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import fx, nn

from djpq_nncf.capture import capture, layer_name
from tests.capture.helpers import assert_promised_form, assert_same, assert_same_behaviour, run

MODELS = {
    "resnet18": {},
    "mobilenet_v2": {},
    "densenet121": {},
    # Auxiliary heads have a test of their own: test_train_only.py.
    "googlenet": {"aux_logits": False, "init_weights": False},
    "vgg11_bn": {"init_weights": False},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x1_0": {},
    "squeezenet1_1": {},
}

# Channel shuffle has the spatial size of the example in the graph: forward() views with Python integers.
FIXED_SIZE = ("shufflenet_v2_x1_0",)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, num_classes=5, **MODELS[name])
    if name == "vgg11_bn":
        # Its two hidden layers hold 119 of 129 million parameters.
        model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5))
    return model


@pytest.fixture(scope="module", params=MODELS)
def captured(request: pytest.FixtureRequest) -> tuple[nn.Module, fx.GraphModule]:
    model = build(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model, capture(model, (torch.randn(1, 3, 64, 64),))


def test_form(captured: tuple[nn.Module, fx.GraphModule]) -> None:
    _, gm = captured
    assert_promised_form(gm)
    assert type(gm).__name__.startswith("GraphModule")


def test_same_behaviour_at_another_batch_and_size(
    captured: tuple[nn.Module, fx.GraphModule], request: pytest.FixtureRequest
) -> None:
    model, gm = captured
    height = 64 if request.node.callspec.id in FIXED_SIZE else 48
    assert_same_behaviour(model, gm, (torch.randn(3, 3, height, height),))


def test_batch_of_one(captured: tuple[nn.Module, fx.GraphModule]) -> None:
    model, gm = captured
    x = torch.randn(1, 3, 64, 64)
    assert_same(run(gm, (x,)), run(model, (x,)))


def test_state_dict_round_trip(captured: tuple[nn.Module, fx.GraphModule]) -> None:
    model, gm = captured
    other = copy.deepcopy(model)
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.mul_(1.1)
    ours = copy.deepcopy(gm)
    ours.load_state_dict(other.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert_same(run(ours, (x,)), run(other, (x,)))
    model.load_state_dict(gm.state_dict())


def test_every_convolution_has_its_module_path(captured: tuple[nn.Module, fx.GraphModule]) -> None:
    model, gm = captured
    expected = [p for p, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weighted = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    assert sorted(layer_name(n) for n in gm.graph.nodes if n.target in weighted) == sorted(expected)
