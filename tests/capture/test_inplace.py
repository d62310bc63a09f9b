# SPDX-License-Identifier: Apache-2.0
"""Models that write into their tensors are captured as if they did not, with the same results."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.errors import CaptureError
from tests.capture.helpers import check


class Body(nn.Module):
    """Runs ``body(fc(x), fc)``; the tensor that is written into is an intermediate one."""

    def __init__(self, body: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.body = body

    def forward(self, x: Tensor) -> object:
        return self.body(self.fc(x))


def later_reads(y: Tensor) -> object:
    z = y * 2
    y += z
    later = z + y
    return y.sub_(0.5), later, y, F.relu_(y * 2)


def through_slice(y: Tensor) -> Tensor:
    y[:, :2] += 1
    y[:, 4] = 0
    return y * 2


def through_view_of_view(y: Tensor) -> Tensor:
    y.view(-1, 2, 3).transpose(1, 2)[:, 1].mul_(3)
    return y.square()


def view_read_after_base_changed(y: Tensor) -> Tensor:
    part = y[:, 1:3]
    reshaped = y.view(-1, 3, 2)
    y.add_(5)
    return part.sum(1) + reshaped.sum((1, 2))


def view_of_view_read_after_sibling_changed(y: Tensor) -> Tensor:
    left = y[:, :3]
    corner = left[:, :1]
    y[:, :2].mul_(2)
    corner.sub_(1)
    return left.cumsum(1) + y[:, 3:]


def through_permute(y: Tensor) -> Tensor:
    y.view(-1, 2, 3).permute(2, 0, 1).select(0, 1).zero_()
    y.t()[0] = 2.0
    return y


def mask_and_fill(y: Tensor) -> Tensor:
    y[y > 0] = 0.5
    y.masked_fill_(y < -0.3, -0.3)
    return y


def copy_into(y: Tensor) -> Tensor:
    result = torch.zeros_like(y)
    result[:, :3].copy_(y[:, 3:])
    result[:, 3:] = y[:, :3].double()
    return result


def keeps_dtype(y: Tensor) -> Tensor:
    half = y.bfloat16()
    half += y
    return half.float()


def unused_view(y: Tensor) -> Tensor:
    wide = y[:, :1].expand(-1, 6)
    y.relu_()
    return wide + y


def python_operators(y: Tensor) -> Tensor:
    mask = y > 0
    mask &= y < 1
    mask |= y < -1
    mask ^= y > 0.5
    y **= 2
    bits = (y * 100).long()
    bits //= 3
    bits <<= 1
    return y * mask + bits


def through_narrow(y: Tensor) -> Tensor:
    y.narrow(1, 1, 2).add_(1)
    y.narrow(1, -2, 2).mul_(3)
    return y


def through_moved_dimensions(y: Tensor) -> Tensor:
    cube = y.view(-1, 2, 3)
    cube.movedim(1, 2)[:, 0] = 4
    cube.mT[:, 1] += 1
    cube.movedim((0, 1), (1, 0))[0].neg_()
    return y


def through_expand(y: Tensor) -> Tensor:
    y.expand_as(y).mul_(2)
    y.broadcast_to(y.shape)[:, 0] = 1
    return y


def random_fill(y: Tensor) -> Tensor:
    return y * torch.empty_like(y).bernoulli_(0.5) + torch.zeros_like(y).normal_(1, 2)


BODIES = [
    python_operators,
    through_narrow,
    through_moved_dimensions,
    through_expand,
    random_fill,
    later_reads,
    through_slice,
    through_view_of_view,
    view_read_after_base_changed,
    view_of_view_read_after_sibling_changed,
    through_permute,
    mask_and_fill,
    copy_into,
    keeps_dtype,
    unused_view,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_same_as_the_model_that_writes_in_place(body: Callable[[Tensor], object]) -> None:
    check(Body(body), (torch.randn(4, 6),), other=(torch.randn(7, 6),))


class InplaceResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x * 1.0)
        y = self.bn(self.conv(x))
        y += x
        kept = self.conv(self.relu(y))
        self.drop(kept)
        return y + kept


def test_residual_block_with_inplace_modules() -> None:
    check(InplaceResidual(), (torch.randn(2, 3, 6, 6),))


def test_the_input_of_the_caller_is_left_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    before = x.clone()
    gm = capture(model, (x,))
    gm(x)
    assert torch.equal(x, before)


class WritesIntoBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_model_that_changes_its_own_state_is_refused() -> None:
    model = nn.Sequential()
    model.add_module("counter", WritesIntoBuffer())
    with pytest.raises(CaptureError, match=r"'counter'.*'counter\.calls'"):
        capture(model, (torch.randn(2, 3),))


def no_way_back(y: Tensor) -> Tensor:
    y.unfold(1, 3, 3).mul_(2)
    return y


def test_a_view_that_cannot_be_written_back_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"aten\.mul_.*aten\.unfold.*clone\(\)"):
        capture(Body(no_way_back), (torch.randn(2, 6),))
