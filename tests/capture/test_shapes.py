# SPDX-License-Identifier: Apache-2.0
"""Shapes, names and the operator-only form of captured graphs."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from djpq_nncf.capture import capture, is_captured, layer_name, propagate_shapes, to_functional
from djpq_nncf.errors import CaptureError
from djpq_nncf.nn._frozen import FrozenActivationQuantizer, FrozenWeightQuantizer
from tests.capture.helpers import assert_same, run

aten = torch.ops.aten
IMAGE = (torch.randn(2, 3, 8, 8),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, momentum=None)
        self.plain = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.bn(self.conv(x)).relu())
        x = self.bn(x)
        return self.fc(self.drop(x.view(x.shape[0], 4, -1).mean(2)))


@pytest.fixture
def gm() -> fx.GraphModule:
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(8, 3, 8, 8))
    return capture(net, IMAGE)


def shape_of(gm: fx.GraphModule, name: str) -> tuple[int, ...]:
    return tuple(next(n for n in gm.graph.nodes if layer_name(n) == name).meta["val"].shape)


def find(gm: fx.GraphModule, target: object) -> fx.Node:
    return next(n for n in gm.graph.nodes if n.target == target)


def test_sizes_are_python_integers(gm: fx.GraphModule) -> None:
    size = find(gm, aten.sym_size.int)
    assert type(size.meta["val"]) is int and size.meta["val"] == 2


def test_smaller_parameters(gm: fx.GraphModule) -> None:
    gm.conv.weight = nn.Parameter(gm.conv.weight[:3].detach())
    gm.conv.bias = nn.Parameter(gm.conv.bias[:3].detach())
    with pytest.raises(CaptureError, match="'bn'"):
        propagate_shapes(gm)
    for name in ("weight", "bias"):
        setattr(gm.bn, name, nn.Parameter(getattr(gm.bn, name)[:3].detach()))
    gm.bn.running_mean, gm.bn.running_var = gm.bn.running_mean[:3], gm.bn.running_var[:3]
    view = find(gm, aten.view.default)
    view.args = (view.args[0], [*view.args[1][:1], 3, -1])
    gm.fc.weight = nn.Parameter(gm.fc.weight[:, :3].detach())
    propagate_shapes(gm)
    assert shape_of(gm, "conv") == (2, 3, 6, 6)
    assert shape_of(gm, "fc") == (2, 5)


def test_propagation_leaves_state_and_modes_alone(gm: fx.GraphModule) -> None:
    gm.train()
    gm.drop.eval()
    before = copy.deepcopy(gm.state_dict())
    propagate_shapes(gm)
    assert_same(gm.state_dict(), before, 0)
    assert gm.bn.training and not gm.drop.training
    assert all(type(p) is nn.Parameter for p in gm.parameters())


def add_quantizers(gm: fx.GraphModule) -> None:
    conv = find(gm, aten.conv2d.default)
    gm.add_module("wq", FrozenWeightQuantizer(torch.full((4,), 0.1), 4))
    gm.add_module("aq", FrozenActivationQuantizer(torch.tensor(0.1), -127, 127))
    with gm.graph.inserting_before(conv):
        activation = gm.graph.call_module("aq", (conv.args[0],))
        weight = gm.graph.call_module("wq", (conv.args[1],))
    conv.args = (activation, weight, *conv.args[2:])
    gm.recompile()


def test_modules_of_other_classes(gm: fx.GraphModule) -> None:
    add_quantizers(gm)
    propagate_shapes(gm)
    assert find(gm, "wq").meta["val"].shape == (4, 3, 3, 3)
    assert find(gm, "aq").meta["val"].shape == (2, 3, 8, 8)


def test_names(gm: fx.GraphModule) -> None:
    add_quantizers(gm)
    assert layer_name(find(gm, aten.conv2d.default)) == "conv"
    assert layer_name(find(gm, "bn")) == "bn"
    assert layer_name(find(gm, aten.linear.default)) == "fc"
    assert layer_name(find(gm, aten.relu.default)) == "relu"
    assert layer_name(find(gm, "x")) == "x"


def test_names_of_tied_weights() -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 4))
    model.add_module("second", nn.Linear(4, 4))
    model.second.weight = model.first.weight
    linears = capture(model, (torch.randn(2, 4),)).graph.find_nodes(
        op="call_function", target=aten.linear.default, sort=True
    )
    assert [layer_name(n) for n in linears] == ["first", "second"]


def test_functional_form(gm: fx.GraphModule) -> None:
    add_quantizers(gm)
    functional = to_functional(gm)
    assert_same(run(functional, IMAGE), run(gm, IMAGE))
    assert not is_captured(functional) and is_captured(gm)
    calls = [n for n in functional.graph.nodes if n.op == "call_module"]
    assert [n.target for n in calls] == ["aq", "wq"]
    norms = functional.graph.find_nodes(op="call_function", target=aten.batch_norm.default, sort=True)
    assert [n.name for n in norms] == [n.name for n in gm.graph.nodes if n.target in ("bn", "plain")]
    assert [n.args[5] for n in norms] == [False, True, False]
    assert norms[0].args[1].target == "bn.weight" and norms[0].args[1] is norms[2].args[1]
    assert all(n.meta["val"].shape == (2, 4, 6, 6) for n in norms)
    assert len([n for n in gm.graph.nodes if n.op == "call_module"]) == 6
