# SPDX-License-Identifier: Apache-2.0
"""A model or input that cannot be captured: one short error that says where, why and what to do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.errors import CaptureError


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class UsesNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4) * 2


class Conditional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


def inside(module: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model.add_module("bad", module)
    return model


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("model", "args", "expected"),
    [
        pytest.param(inside(Branches()), (X,), ["Sequential", "'bad'", "if x.sum() > 0", "torch.where"], id="branch"),
        pytest.param(inside(UsesNumpy()), (X,), ["Sequential", "'bad'", "NumPy"], id="numpy"),
        pytest.param(
            inside(FixedBatch()), (X,), ["Sequential", "fixes the batch to 2", "x.shape[0]"], id="fixed-batch"
        ),
        pytest.param(inside(Conditional()), (X,), ["'bad'", "cond", "plain tensor operations"], id="cond"),
        pytest.param(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4)),
            (X,),
            ["Sequential", "'1'", "(2, 4)"],
            id="model-shapes",
        ),
        pytest.param(nn.Linear(4, 4), (torch.randn(2, 5),), ["Linear", "(2, 5)", "example inputs"], id="input-shape"),
        pytest.param(nn.Linear(4, 4), X, ["tuple", "(x,)"], id="not-a-tuple"),
        pytest.param(nn.Linear(4, 4), (), ["no tensor"], id="no-inputs"),
        pytest.param(nn.Linear(4, 4), (torch.randn(0, 4),), ["empty"], id="empty-batch"),
        pytest.param(nn.Linear(4, 4), (X, X), ["Linear", "example inputs"], id="too-many"),
    ],
)
def test_one_short_error(model: nn.Module, args: Any, expected: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, args)
    message = str(caught.value)
    for part in expected:
        assert part in message
    assert len(message) < 600 and "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_the_error_of_torch_is_chained() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(inside(Branches()), (X,))
    assert type(caught.value.__cause__).__name__ == "GuardOnDataDependentSymNode"


def test_a_model_with_a_reserved_name_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"'graph'.*rename"):
        capture(_Reserved(), (X,))


class _Reserved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)


def test_hooks_do_not_stay_after_an_error() -> None:
    model = inside(Branches())
    with pytest.raises(CaptureError):
        capture(model, (X,))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
