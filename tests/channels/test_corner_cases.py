# SPDX-License-Identifier: Apache-2.0
"""Arguments and operands that a rule is easily wrong about: removal equals gating, and costs stay exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf.passes import kept_channels, remove
from tests.helpers import PRUNING_ONLY, insert_into, random_gates


class Case(nn.Module):
    """``first``, then a function that may use more tensors and layers, then ``second``."""

    def __init__(
        self, first: nn.Module, function: Callable[[Any, Tensor], Tensor], second: nn.Module, **more: Any
    ) -> None:
        super().__init__()
        self.first, self.function, self.second = first, function, second
        for name, value in more.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self, self.first(x)))


def conv(function: Callable[[Any, Tensor], Tensor], inputs: int = 8, **more: Any) -> Case:
    return Case(nn.Conv2d(3, 8, 3, padding=1), function, nn.Conv2d(inputs, 5, 1), **more)


def linear(function: Callable[[Any, Tensor], Tensor], inputs: int = 8, **more: Any) -> Case:
    return Case(nn.Linear(8, 8), function, nn.Linear(inputs, 5), **more)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def attention(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Case:
    """Two heads of width four."""

    def run(module: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 6, 2, 4).transpose(1, 2) for layer in (module.q, module.k, module.v))
        return function(q, k, v).transpose(1, 2).reshape(-1, 6, 8)

    return Case(nn.Identity(), run, nn.Linear(8, 5), q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2)[..., None])


def merged_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(-1, 6, 4) for x in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).view(-1, 2, 6, 4)


IMAGES = (2, 3, 8, 8)
SEQUENCE = (2, 6, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    # name -> network, shape of its input, number of channels that can go
    "parameter selected": (lambda: conv(lambda s, x: x * s.g[0].view(1, 8, 1, 1), g=parameter(2, 8)), IMAGES, 8),
    "number selected": (lambda: conv(lambda s, x: x * s.g[1], g=parameter(2)), IMAGES, 8),
    "parameter unbound": (lambda: conv(lambda s, x: x * s.g.unbind(0)[1][:, None, None], g=parameter(2, 8)), IMAGES, 8),
    "parameter rolled": (lambda: conv(lambda s, x: x * s.g.roll(1, 0)[:, None, None], g=parameter(8)), IMAGES, 8),
    "parameter strided": (lambda: conv(lambda s, x: x * s.g[::2][:, None, None], g=parameter(16)), IMAGES, 8),
    "parameter torn": (
        lambda: conv(lambda s, x: x * s.g.view(2, 4).t().reshape(8)[:, None, None], g=parameter(8)), IMAGES, 8,
    ),
    "parameter sliced": (lambda: conv(lambda s, x: x * s.g[2:10][:, None, None], g=parameter(16)), IMAGES, 8),
    "single channel expanded": (
        lambda: conv(lambda s, x: torch.cat([x, x[:, 3:4].expand(-1, 2, -1, -1)], 1), 10), IMAGES, 7,
    ),
    "single channel repeated": (
        lambda: conv(lambda s, x: torch.cat([x, x[:, 3:4].repeat(1, 2, 1, 1)], 1), 10), IMAGES, 7,
    ),
    "single channel selected": (lambda: conv(lambda s, x: x * x[:, 3].unsqueeze(1)), IMAGES, 7),
    "single channel copied": (lambda: conv(lambda s, x: x * x[:, 3].clone()[:, None]), IMAGES, 7),
    "single channel permuted": (lambda: conv(lambda s, x: x * x[:, 3:4].permute(0, 1, 3, 2)), IMAGES, 7),
    "single channel viewed": (lambda: conv(lambda s, x: x * x[:, 3:4].flatten(2).view(-1, 1, 8, 8)), IMAGES, 7),
    "buffer as linear weight": (lambda: linear(lambda s, x: F.linear(x, s.w), w=torch.randn(8, 8)), SEQUENCE, 16),
    "buffer as matrix": (lambda: linear(lambda s, x: x @ s.w, w=torch.randn(8, 8)), SEQUENCE, 16),
    "buffer as filter": (lambda: conv(lambda s, x: F.conv2d(x, s.w), w=torch.randn(8, 8, 1, 1)), IMAGES, 16),
    "buffer as blur": (
        lambda: conv(lambda s, x: F.conv2d(x, s.w, groups=8, padding=1), w=torch.randn(8, 1, 3, 3)), IMAGES, 8,
    ),
    "channels as indices": (
        lambda: Case(nn.Linear(8, 8), lambda s, x: s.table((x > 0).long()).mean(1), nn.Linear(6, 5),
                     table=nn.Embedding(3, 6)), (2, 8), 6,
    ),
    "gather": (lambda: linear(lambda s, x: torch.gather(x, 1, (x > 0).long())), (2, 8), 0),
    "indexed by channels": (lambda: linear(lambda s, x: s.g[(x > 0).long()], 6, g=parameter(3, 6)), (2, 8), 0),
    "constant_pad_nd": (lambda: conv(lambda s, x: torch.constant_pad_nd(x, (0, 0, 0, 0, 1, 2)), 11), IMAGES, 8),
    "slope without dimension": (
        lambda: conv(lambda s, x: F.prelu(x, s.p), p=nn.Parameter(torch.tensor(0.3))), IMAGES, 8,
    ),
    "vector as linear weight": (
        lambda: linear(lambda s, x: F.linear(x, s.w)[..., None].expand(-1, -1, 8), w=parameter(8)), SEQUENCE, 0,
    ),
    "weight with three dimensions": (
        lambda: linear(lambda s, x: torch.einsum("bthd,hde->bte", x.view(-1, 6, 2, 4), s.w), 7, w=parameter(2, 4, 7)),
        SEQUENCE, 13,
    ),
    "diagonal": (
        lambda: linear(lambda s, x: torch.einsum("bcc,btc->btc", torch.einsum("btc,btd->bcd", x, s.a(x)), x),
                       a=nn.Linear(8, 8)), SEQUENCE, 0,
    ),
    "depthwise over features": (
        lambda: Case(nn.Conv1d(3, 4, 1), lambda s, x: s.depthwise(s.a(x)), nn.Conv1d(4, 5, 1), a=nn.Linear(6, 8),
                     depthwise=nn.Conv1d(4, 4, 3, padding=1, groups=4)), (2, 3, 6), 4,
    ),
    "convolution over features": (
        lambda: Case(nn.Conv1d(3, 4, 1), lambda s, x: s.b(s.conv(s.a(x))), nn.Conv1d(4, 5, 1), a=nn.Linear(6, 8),
                     conv=nn.Conv1d(4, 4, 3, padding=1), b=nn.Linear(8, 6)), (2, 3, 6), 16,
    ),
    "instance norm of features": (
        lambda: Case(nn.Linear(6, 8), lambda s, x: s.n(x), nn.Linear(8, 5), n=nn.InstanceNorm1d(3, affine=True)),
        (2, 3, 6), 8,
    ),
    "group norm of features": (
        lambda: Case(nn.Linear(6, 8), lambda s, x: s.n(x), nn.Linear(8, 5), n=nn.GroupNorm(3, 3)), (2, 3, 6), 8,
    ),
    "layer norm of two dimensions": (
        lambda: Case(nn.Linear(6, 8), lambda s, x: s.n(x), nn.Linear(8, 5), n=nn.LayerNorm((3, 8))), (2, 3, 6), 8,
    ),
    "half of them pooled": (
        lambda: conv(lambda s, x: torch.cat([F.max_pool2d(x[:, :4], 3, 1, 1), F.avg_pool2d(x[:, 4:], 3, 1, 1)], 1)),
        IMAGES, 8,
    ),
    "mean of half of them": (lambda: conv(lambda s, x: x * x[:, :4].mean(1, keepdim=True)), IMAGES, 8),
    "logarithm of a softmax": (lambda: linear(lambda s, x: x.softmax(-1).log()), SEQUENCE, 8),
    "linear attention": (lambda: attention(linear_attention), SEQUENCE, 10),
    "heads merged into the batch": (lambda: attention(merged_attention), SEQUENCE, 10),
    "einsum of three": (
        lambda: linear(lambda s, x: torch.einsum("btc,btd,cde->bte", x, s.q(x), s.w), q=nn.Linear(8, 7),
                       w=parameter(8, 7, 8)), SEQUENCE, 23,
    ),
    "einsum of one": (lambda: linear(lambda s, x: torch.einsum("btc->bct", x).transpose(1, 2)), SEQUENCE, 8),
    "multi-head attention with weights": (
        lambda: Case(nn.Linear(8, 8), lambda s, x: s.m(x, x, x)[0], nn.Linear(8, 5),
                     m=nn.MultiheadAttention(8, 2, batch_first=True)), SEQUENCE, 26,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_removed_equals_gated(name: str) -> None:
    factory, shape, removable = CASES[name]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    network = insert_into(factory().double(), x, **PRUNING_ONLY)
    assert network.analysis.channel_count == removable
    for seed in range(6):
        random_gates(network.gates, seed, nearly_all=seed % 2 == 1)
        keep = kept_channels(network.analysis, network.gates)
        with torch.no_grad():
            expected = network.model.eval()(x)
            stripped = remove(network.model, network.analysis, keep)
            torch.testing.assert_close(stripped(x), expected)
            torch.testing.assert_close(stripped(x[:1]), network.model(x[:1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays(dtype: torch.dtype) -> None:
    """Gates are in single precision, whatever the weights are in."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8, dtype=dtype)
    network = insert_into(linear(lambda s, y: F.layer_norm(y.relu(), (8,))).to(dtype), x, **PRUNING_ONLY)
    random_gates(network.gates, 0, nearly_all=False)
    stripped = remove(network.model.eval(), network.analysis, kept_channels(network.analysis, network.gates))
    with torch.no_grad():
        assert network.model(x).dtype == stripped(x).dtype == dtype
        torch.testing.assert_close(stripped(x), network.model(x))
