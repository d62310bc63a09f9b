# SPDX-License-Identifier: Apache-2.0
"""Blocks of convolutional and other networks: recalibration, norms, gated units, rearrangements."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.channels.cases._case import Case, Net, conv, images, layer, norm, reads, rows, tokens, weight, words


def _efficient_attention(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    scale = s.neighbours(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
    return s.out(x * torch.sigmoid(scale)[:, :, None, None])


def _selective_kernels(s: Net, x: Tensor) -> Tensor:
    branches = torch.stack([s.a(x), s.b(x)], 1)
    pooled = branches.sum(1).mean((2, 3), keepdim=True)
    shares = s.excite(F.silu(s.squeeze(pooled))).reshape(-1, 2, 8, 1, 1).softmax(1)
    return s.out((branches * shares).sum(1))


def _spatial_attention(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    statistics = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return s.out(x * torch.sigmoid(s.map(statistics)))


def _global_context(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    shares = s.attend(x).flatten(2).softmax(-1)
    context = (x.flatten(2) @ shares.transpose(1, 2)).unsqueeze(-1)
    return s.out(x + s.up(F.silu(s.norm(s.down(context)))))


def _stream(s: Net, x: Tensor) -> Tensor:
    x = s.embed(x)
    x = x + s.down1(F.gelu(s.up1(s.norm1(x))))
    x = x + s.scale * s.down2(F.gelu(s.up2(s.norm2(x))))
    return s.head(s.norm3(x))


def _rms(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    return s.out(s.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))


def _response_norm(s: Net, x: Tensor) -> Tensor:
    """As in ConvNeXt V2: the norm of each channel against the mean of all norms."""
    x = s.a(x).permute(0, 2, 3, 1)
    norms = x.norm(dim=(1, 2), keepdim=True)
    x = s.scale * (x * (norms / (norms.mean(-1, keepdim=True) + 1e-6))) + s.shift + x
    return s.out(x.permute(0, 3, 1, 2))


def _tied(s: Net, x: Tensor) -> Tensor:
    x = s.embed(x)
    return s.head(x + s.down(F.gelu(s.up(x))))


def tied_embedding() -> nn.Module:
    net = Net(_tied, embed=nn.Embedding(10, 8), up=nn.Linear(8, 12), down=nn.Linear(12, 8), head=nn.Linear(8, 10))
    net.head.weight = net.embed.weight
    return net


def _convolved_norm(normalisation: nn.Module) -> Net:
    return Net(lambda s, x: s.out(s.norm(s.a(x)).sigmoid()), a=conv(3, 8), norm=normalisation, out=conv(8, 2))


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


BLOCKS: dict[str, Case] = {
    "efficient channel attention": Case(
        lambda: Net(
            _efficient_attention, a=conv(3, 8), neighbours=nn.Conv1d(1, 1, 3, padding=1, bias=False), out=conv(8, 2)
        ),
        {"a": (8, layer("a") | reads("out"))},
        images,
    ),
    "selective kernels": Case(
        lambda: Net(
            _selective_kernels, a=conv(3, 8, 3), b=conv(3, 8), squeeze=conv(8, 4), excite=conv(4, 16), out=conv(8, 2)
        ),
        {
            "a": (8, layer("a") | layer("b") | reads("squeeze") | layer("excite", 2) | reads("out")),
            "squeeze": (4, layer("squeeze") | reads("excite")),
        },
        images,
    ),
    "spatial attention": Case(
        lambda: Net(_spatial_attention, a=conv(3, 8), map=conv(2, 1, 3), out=conv(8, 2)),
        {"a": (8, layer("a") | reads("out"))},
        images,
    ),
    "global context": Case(
        lambda: Net(
            _global_context, a=conv(3, 8), attend=conv(8, 1), down=conv(8, 4), norm=nn.LayerNorm((4, 1, 1)),
            up=conv(4, 8), out=conv(8, 2),
        ),
        {
            "a": (8, layer("a") | reads("attend") | reads("down") | layer("up") | reads("out")),
            "down": (4, layer("down") | layer("norm") | reads("up")),
        },
        images,
    ),
    "group norm, several groups": Case(
        lambda: _convolved_norm(nn.GroupNorm(2, 8)),
        {"a": (4, layer("a", 2) | layer("norm", 2) | reads("out", 2))},
        images,
    ),
    "group norm, one group": Case(
        lambda: _convolved_norm(nn.GroupNorm(1, 8)), {"a": (8, layer("a") | layer("norm") | reads("out"))}, images
    ),
    "group norm, a group each": Case(
        lambda: _convolved_norm(nn.GroupNorm(8, 8)), {"a": (8, layer("a") | layer("norm") | reads("out"))}, images
    ),
    "instance norm": Case(
        lambda: _convolved_norm(nn.InstanceNorm2d(8, affine=True)),
        {"a": (8, layer("a") | layer("norm") | reads("out"))},
        images,
    ),
    "instance norm with statistics": Case(
        lambda: _convolved_norm(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        {"a": (8, layer("a") | norm("norm") | reads("out"))},
        images,
    ),
    "layer norms over a stream": Case(
        lambda: Net(
            _stream, embed=nn.Linear(6, 8), norm1=nn.LayerNorm(8), norm2=nn.LayerNorm(8), norm3=nn.LayerNorm(8),
            up1=nn.Linear(8, 10), down1=nn.Linear(10, 8), up2=nn.Linear(8, 7), down2=nn.Linear(7, 8),
            scale=nn.Parameter(torch.rand(8)), head=nn.Linear(8, 3),
        ),
        {
            "embed": (
                8,
                layer("embed") | layer("norm1") | layer("norm2") | layer("norm3") | reads("up1") | layer("down1")
                | reads("up2") | layer("down2") | rows("scale") | reads("head"),
            ),
            "up1": (10, layer("up1") | reads("down1")),
            "up2": (7, layer("up2") | reads("down2")),
        },
        tokens,
    ),
    "root mean square norm": Case(
        lambda: Net(_rms, a=nn.Linear(6, 8), scale=nn.Parameter(torch.rand(8)), out=nn.Linear(8, 3)),
        {"a": (8, layer("a") | rows("scale") | reads("out"))},
        tokens,
    ),
    "global response norm": Case(
        lambda: Net(
            _response_norm, a=conv(3, 8), scale=nn.Parameter(torch.randn(8)),
            shift=nn.Parameter(torch.randn(1, 1, 1, 8)), out=conv(8, 2),
        ),
        {"a": (8, layer("a") | rows("scale") | {("shift", 3, 1)} | reads("out"))},
        images,
    ),
    "gated linear unit": Case(
        lambda: Net(lambda s, x: s.out(F.glu(s.a(x), 1)), a=conv(3, 8), out=conv(4, 2)),
        {"a": (4, layer("a", 2) | reads("out"))},
        images,
    ),
    "gated by halves": Case(
        lambda: Net(
            lambda s, x: s.out(F.silu((y := s.a(x))[..., :4]) * y[..., 4:]), a=nn.Linear(6, 8), out=nn.Linear(4, 3)
        ),
        {"a": (4, layer("a", 2) | reads("out"))},
        tokens,
    ),
    "maximum of halves": Case(
        lambda: Net(
            lambda s, x: s.out(s.a(x).unflatten(1, (2, 4)).amax(1)), a=conv(3, 8), out=conv(4, 2)
        ),
        {"a": (4, layer("a", 2) | reads("out"))},
        images,
    ),
    "pixel shuffle": Case(
        lambda: Net(lambda s, x: s.out(F.pixel_shuffle(s.a(x), 2)), a=conv(3, 12), out=conv(3, 2)),
        {"a": (3, layer("a", 4) | reads("out"))},
        images,
    ),
    "pixel unshuffle": Case(
        lambda: Net(lambda s, x: s.out(F.pixel_unshuffle(s.a(x), 2)), a=conv(3, 5), out=conv(20, 2)),
        {"a": (5, layer("a") | reads("out", 4))},
        images,
    ),
    "table that is the output layer": Case(
        tied_embedding,
        {
            "embed": (8, {("embed.weight", 1, 1)} | reads("up") | layer("down")),
            "up": (12, layer("up") | reads("down")),
        },
        words,
    ),
    "tables of words and positions": Case(
        lambda: Net(
            lambda s, x: s.head(s.norm(s.words(x) + s.positions(_positions(x)))), words=nn.Embedding(10, 8),
            positions=nn.Embedding(6, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 3),
        ),
        {"words": (8, {("words.weight", 1, 1), ("positions.weight", 1, 1)} | layer("norm") | reads("head"))},
        words,
    ),
    "grouped transposed convolution": Case(
        lambda: Net(
            lambda s, x: s.out(F.silu(s.up(s.a(x)))), a=conv(3, 8), up=nn.ConvTranspose2d(8, 12, 2, 2, groups=4),
            out=conv(12, 2),
        ),
        {
            # convolution groups, inputs in each, outputs in each
            "a": (4, layer("a", 2) | rows("up.weight", 2) | rows("up.bias", 3) | reads("out", 3)),
            "a#2": (2, layer("a", 4) | rows("up.weight", 4)),
            "up": (3, reads("up") | rows("up.bias", 4) | reads("out", 4)),
        },
        images,
    ),
    "depthwise, then transposed, in one dimension": Case(
        lambda: Net(
            lambda s, x: s.out(s.up(F.silu(s.depthwise(s.a(x))))), a=nn.Conv1d(5, 8, 1),
            depthwise=nn.Conv1d(8, 16, 3, padding=1, groups=8), up=nn.ConvTranspose1d(16, 6, 2, 2),
            out=nn.Conv1d(6, 2, 1),
        ),
        {
            "a": (8, layer("a") | layer("depthwise", 2) | rows("up.weight", 2)),
            "up": (6, reads("up") | rows("up.bias") | reads("out")),
        },
        tokens,
    ),
    "grouped in three dimensions": Case(
        lambda: Net(
            lambda s, x: s.out(s.bn(s.grouped(s.a(x))).sigmoid().mean((2, 3, 4))), a=nn.Conv3d(2, 6, 1),
            grouped=nn.Conv3d(6, 9, 3, padding=1, groups=3, bias=False), bn=nn.BatchNorm3d(9), out=nn.Linear(9, 2),
        ),
        {
            "a": (3, layer("a", 2) | weight("grouped", 3) | norm("bn", 3) | reads("out", 3)),
            "a#2": (2, layer("a", 3) | reads("grouped")),
            "grouped": (3, weight("grouped", 3) | norm("bn", 3) | reads("out", 3)),
        },
        lambda: (torch.randn(2, 2, 3, 3, 3, dtype=torch.float64),),
    ),
}  # fmt: skip
