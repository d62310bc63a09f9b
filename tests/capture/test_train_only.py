# SPDX-License-Identifier: Apache-2.0
"""What a model does only in train mode is named in one warning."""

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from djpq_nncf.capture import capture


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape[0], 1) if self.training else x


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.same = nn.Identity()
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.same(x + self.drop(self.attn(y, y, y, need_weights=False)[0]))


class NeedsTargets(nn.Module):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("targets are needed in train mode")
        return x * 2


def messages(model: nn.Module, x: Tensor) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        capture(model, (x,))
    assert [(w.category, w.filename) for w in caught] == [(UserWarning, __file__)] * len(caught)
    return [str(w.message) for w in caught]


def test_stochastic_depth() -> None:
    (message,) = messages(nn.Sequential(nn.Linear(4, 4), nn.Sequential(DropPath())), torch.randn(2, 4))
    assert "1.0 (DropPath)" in message


def test_attention_dropout() -> None:
    (message,) = messages(Attention(0.2), torch.randn(2, 5, 8))
    assert message.endswith("attn (MultiheadAttention).")


def test_dropout_between_recurrent_layers() -> None:
    model = nn.Sequential(nn.LSTM(4, 4, num_layers=2, dropout=0.3, batch_first=True))
    (message,) = messages(model, torch.randn(2, 5, 4))
    assert message.endswith("0 (LSTM).")


def test_no_warning_where_nothing_is_lost() -> None:
    assert messages(Attention(0.0), torch.randn(2, 5, 8)) == []


def test_a_model_that_fails_in_train_mode() -> None:
    (message,) = messages(NeedsTargets(), torch.randn(2, 4))
    assert "targets are needed" in message


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_auxiliary_heads_are_named_and_kept_in_the_state() -> None:
    model = torchvision.models.googlenet(init_weights=False, num_classes=5)
    with pytest.warns(UserWarning, match=r"aux1 \(InceptionAux\), aux2 \(InceptionAux\)\.$"):
        gm = capture(model, (torch.randn(2, 3, 64, 64),))
    assert set(gm.state_dict()) == set(model.state_dict())
