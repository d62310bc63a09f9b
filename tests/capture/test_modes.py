# SPDX-License-Identifier: Apache-2.0
"""BatchNorm and dropout follow train() and eval() as in the original model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.errors import CaptureError
from tests.capture.helpers import check

IMAGE = (torch.randn(4, 3, 8, 8),)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"affine": False}, id="not-affine"),
        pytest.param({"track_running_stats": False}, id="no-statistics"),
        pytest.param({"momentum": None}, id="cumulative"),
        pytest.param({"eps": 1e-3, "momentum": 0.3}, id="eps-momentum"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (4, 3)),
        (nn.BatchNorm1d, (4, 3, 5)),
        (nn.BatchNorm2d, (4, 3, 5, 5)),
        (nn.BatchNorm3d, (4, 3, 2, 2, 2)),
    ],
    ids=["1d-flat", "1d", "2d", "3d"],
)
def test_batch_norm(kind: Any, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    gm = check(nn.Sequential(kind(3, **options)), (torch.randn(shape),))
    assert type(gm.get_submodule("0")) is kind


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3, momentum=None)
        self.alias = self.bn

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.conv(self.bn(self.conv(x))))


def test_batch_norm_used_twice() -> None:
    gm = check(SharedNorm(), IMAGE)
    assert gm.bn is gm.alias
    calls = [n for n in gm.graph.nodes if n.op == "call_module"]
    assert len(calls) == 2
    gm.train()(*IMAGE)
    assert gm.bn.num_batches_tracked == 2


def test_frozen_batch_norm_stays_in_eval() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).train()
    model[1].eval()
    model[1].requires_grad_(False)
    gm = capture(model, IMAGE)
    assert [m.training for m in gm.modules()] == [m.training for m in model.modules()]
    assert not gm.get_submodule("1").weight.requires_grad
    assert gm.get_submodule("2").weight.requires_grad
    gm(*IMAGE)
    assert gm.get_submodule("1").num_batches_tracked == 0
    assert gm.get_submodule("2").num_batches_tracked == 1


class NormWithActivation(nn.BatchNorm2d):
    """As timm does it: a subclass with children of its own."""

    def __init__(self) -> None:
        super().__init__(3)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.act(super().forward(x)))


def test_batch_norm_subclass_with_children() -> None:
    gm = check(nn.Sequential(nn.Conv2d(3, 3, 1), NormWithActivation()), IMAGE)
    assert type(gm.get_submodule("1")) is nn.BatchNorm2d
    assert type(gm.get_submodule("1.drop")) is nn.Dropout


class FunctionalNorm(nn.Module):
    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.bias = nn.Parameter(torch.rand(3))
        self.register_buffer("running_mean", torch.rand(3))
        self.register_buffer("running_var", torch.rand(3))
        self.frozen = frozen

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and not self.frozen
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training)


def test_functional_batch_norm_follows_the_mode() -> None:
    gm = check(nn.Sequential(FunctionalNorm()), IMAGE)
    assert type(gm.get_submodule("0")) is nn.BatchNorm2d


def test_functional_batch_norm_with_fixed_statistics_stays_an_operator() -> None:
    gm = check(nn.Sequential(FunctionalNorm(frozen=True)), IMAGE)
    assert torch.ops.aten.batch_norm.default in [n.target for n in gm.graph.nodes]


class OddlyNamedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training)


def test_functional_batch_norm_with_other_names_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"Module 'norm' .*nn\.BatchNorm"):
        capture(_named("norm", OddlyNamedNorm()), IMAGE)


def _named(name: str, module: nn.Module) -> nn.Module:
    model = nn.Sequential()
    model.add_module(name, module)
    return model


@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Dropout, (4, 6)),
        (nn.Dropout1d, (4, 6, 5)),
        (nn.Dropout2d, (4, 6, 5, 5)),
        (nn.Dropout3d, (4, 6, 3, 3, 3)),
        (nn.AlphaDropout, (4, 6)),
        (nn.FeatureAlphaDropout, (4, 6, 5, 5)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_dropout(kind: Any, shape: tuple[int, ...], inplace: bool) -> None:
    gm = check(nn.Sequential(nn.Tanh(), kind(0.4, inplace=inplace)), (torch.randn(shape),))
    assert type(gm.get_submodule("1")) is kind
    assert gm.get_submodule("1").p == 0.4


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.fc(x), 0.2, self.training)
        return F.dropout2d(self.fc(x), 0.3, self.training, inplace=True)


def test_functional_dropout_gets_modules_in_its_owner() -> None:
    gm = check(_named("block", FunctionalDropout()), (torch.randn(4, 3, 8, 8),))
    assert repr(gm.get_submodule("block.functional_dropout")) == repr(nn.Dropout(0.2))
    assert repr(gm.get_submodule("block.functional_dropout_2")) == repr(nn.Dropout2d(0.3))


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.dropout(x, 0.5, training=True), 0.0, training=True)


def test_dropout_that_is_always_on_stays_on() -> None:
    gm = check(AlwaysDropout(), (torch.randn(4, 8),))
    assert (gm.eval()(torch.ones(1, 1000)) == 0).any()
    assert sum(n.op == "call_function" for n in gm.graph.nodes) == 1
