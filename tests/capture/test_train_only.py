# SPDX-License-Identifier: Apache-2.0
"""What a model does only in train mode is in the graph, or named in one warning."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from djpq_nncf.capture import capture, to_functional
from tests.capture.helpers import assert_same, check, run


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


class TwoAttentions(nn.Module):
    """Two calls in one module, of which one drops nothing."""

    def forward(self, x: Tensor) -> Tensor:
        p = 0.5 if self.training else 0.0
        x = F.scaled_dot_product_attention(x, x, x)
        return F.scaled_dot_product_attention(x, x, x, None, p, is_causal=True)


class WeightsOfAttention(nn.Module):
    """The weights are asked for, so that no fused attention is in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attn(x, x, x)


class UnusedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.head(x)
        return x * 2


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


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = DropPath()
        self.again = self.drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.again(self.fc(x + self.drop(self.fc(x))))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.Sequential(DropPath())), torch.randn(3, 4), id="drop-path"),
        pytest.param(Blocks(), torch.randn(3, 4), id="shared-drop-path"),
        pytest.param(Attention(0.2), torch.randn(3, 5, 8), id="attention"),
        pytest.param(TwoAttentions(), torch.randn(3, 2, 5, 8), id="attentions"),
        pytest.param(UnusedHead(), torch.randn(3, 4), id="unused-head"),
    ],
)
def test_train_mode_is_that_of_the_model(model: nn.Module, x: Tensor) -> None:
    assert messages(model, x) == []
    gm = check(model, (x,))
    functional = to_functional(gm)
    assert not [node for node in functional.graph.nodes if node.op == "call_module"]
    assert_same(run(functional, (x,)), run(model, (x,)))


def test_attention_that_is_not_the_graphs() -> None:
    (message,) = messages(WeightsOfAttention(), torch.randn(2, 5, 8))
    assert message.endswith(" attn (MultiheadAttention).")


def test_buffers_that_change() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    (message,) = messages(model, torch.randn(2, 4))
    assert message.endswith(" 0.parametrizations.weight.0 (_SpectralNorm).")


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
