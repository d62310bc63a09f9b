# SPDX-License-Identifier: Apache-2.0
"""Weights that are computed from parameters become parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from djpq_nncf.capture import capture
from djpq_nncf.passes import fold_computed_weights


def test_parametrizations_are_folded() -> None:
    model = nn.Sequential(
        weight_norm(nn.Linear(4, 6)), nn.ReLU(), spectral_norm(nn.Linear(6, 3)), nn.Linear(3, 2)
    ).eval()
    x = torch.randn(5, 4)
    captured = capture(model, (x,))
    state = {name: value.clone() for name, value in captured.state_dict().items()}
    folded = fold_computed_weights(captured)
    torch.testing.assert_close(folded(x), model(x))
    assert {name: tuple(p.shape) for name, p in folded.named_parameters()} == {
        "0.weight": (6, 4), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,), "3.weight": (2, 3), "3.bias": (2,)
    }  # fmt: skip
    torch.testing.assert_close(folded.get_parameter("0.weight"), model[0].weight)
    torch.testing.assert_close(captured.state_dict(), state)


def test_nothing_to_fold_is_not_copied() -> None:
    captured = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (torch.randn(2, 3, 8, 8),))
    assert fold_computed_weights(captured) is captured


class DropConnect(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 200), nn.Linear(200, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, 2 * F.dropout(self.layer.weight, 0.5, self.training)))


def test_dropout_of_a_weight_is_left_out_with_a_warning() -> None:
    model = DropConnect().train()
    with pytest.warns(UserWarning, match="'linear.weight' was computed with dropout"):
        folded = fold_computed_weights(capture(model, (torch.randn(2, 4),)))
    torch.testing.assert_close(folded.get_parameter("linear.weight"), 2 * model.layer.weight)
