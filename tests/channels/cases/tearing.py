# SPDX-License-Identifier: Apache-2.0
"""Channels that are joined, parted, shuffled, torn apart, or mistaken for something else."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.channels.cases._case import Case, Net, conv, images, layer, norm, reads, rows, tokens


def _interleaved(s: Net, x: Tensor) -> Tensor:
    a, b = s.a(x), s.b(x)
    joined = torch.cat([a[:, :2], b[:, :3], a[:, 2:], b[:, 3:]], 1)
    first, second, third = F.silu(joined).split([3, 5, 2], 1)
    return s.first(first) + s.second(second) + s.third(third)


def _residual_over_concat(s: Net, x: Tensor) -> Tensor:
    joined = torch.cat([s.a(x), s.b(x)], 1)
    return s.out(F.silu(s.block(joined)) + joined)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    parted = x.view(batch, groups, channels // groups, height, width)
    return parted.transpose(1, 2).reshape(batch, channels, height, width)


def _in_batch(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    batch, channels, height, width = x.shape
    each = F.silu(s.each(x.reshape(batch * channels, 1, height, width)))
    return s.out(each.reshape(batch, 2 * channels, height, width))


def _batch_last(s: Net, x: Tensor) -> Tensor:
    turned = torch.tanh(s.a(x.mean(1)).t())
    return s.out((turned * s.scale[:, None]).t())


def _samples_last(s: Net, x: Tensor) -> Tensor:
    return s.out(F.silu(s.middle(s.a(x).transpose(0, 1))).transpose(0, 1))


def _other_order(x: Tensor) -> Tensor:
    """2 x 4 channels as 4 x 2."""
    return x.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)


def _summed_in_two_orders(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    return s.out(_other_order(x) + x)


def _torn_and_whole(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    in_heads = x.unflatten(-1, (2, 4))
    return s.heads(in_heads.amax(-1)) + s.widths(F.gelu(in_heads).mean(-2)) + s.whole(torch.sigmoid(x))


def _torn_twice(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    return s.left(x.unflatten(-1, (2, 6)).amax(-1)) + s.right(x.unflatten(-1, (6, 2)).amax(-1))


def _torn_in_stages(s: Net, x: Tensor) -> Tensor:
    parts = s.a(x).view(x.shape[0], 5, 3, 8)
    first, second = parts[:, :, 0].view(x.shape[0], 5, 2, 4), parts[:, :, 2].view(x.shape[0], 5, 2, 4)
    return s.out((first.amax(3, keepdim=True) * second).flatten(2)) + s.rest(parts[:, :, 1])


def _outer(s: Net, x: Tensor) -> Tensor:
    return s.out((s.a(x)[..., :, None] * s.b(x)[..., None, :]).flatten(-2))


def _outer_beside(s: Net, x: Tensor) -> Tensor:
    outer = (s.a(x)[..., :, None] * s.b(x)[..., None, :]).flatten(-2)
    return s.out(torch.cat([outer, s.c(x)], -1)[..., 3:])  # without the first of a


def _mixer(s: Net, x: Tensor) -> Tensor:
    x = s.embed(x)
    x = s.channels2(F.silu(s.channels1(x))) + x
    return s.tokens2(F.gelu(s.tokens1(x.transpose(1, 2))))


def _square(s: Net, x: Tensor) -> Tensor:
    """4 samples, 4 channels, 4 x 4 positions: channels meet rows, then columns, then samples."""
    x = s.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    x = F.silu(s.b(x)).permute(2, 0, 3, 1)
    return s.c(torch.sigmoid(x) * s.scale).permute(1, 3, 0, 2)


TEARING: dict[str, Case] = {
    "interleaved concatenation split elsewhere": Case(
        lambda: Net(_interleaved, a=conv(3, 4), b=conv(3, 6), first=conv(3, 2), second=conv(5, 2), third=conv(2, 2)),
        {
            "a": (2, layer("a") | reads("first")),
            "a#2": (2, layer("a") | reads("second")),
            # of each part taken, the first three and the last three, a channel stays; two are alone in their places
            "b": (2, layer("b") | reads("second")),
            "b#2": (2, layer("b") | reads("third")),
        },
        images,
    ),
    "residual over a concatenation": Case(
        lambda: Net(_residual_over_concat, a=conv(3, 4), b=conv(3, 6), block=conv(10, 10, 3), out=conv(10, 2)),
        {
            "a": (4, layer("a") | layer("block") | reads("block") | reads("out")),
            "b": (6, layer("b") | layer("block") | reads("block") | reads("out")),
        },
        images,
    ),
    "shuffle between grouped convolutions": Case(
        lambda: Net(
            lambda s, x: s.out(F.silu(s.second(_shuffled(s.first(s.a(x)), 2)))),
            a=conv(3, 4), first=conv(4, 8, groups=2), second=conv(8, 6, groups=2), out=conv(6, 2),
        ),
        {
            # convolution groups of the first, inputs in each of them
            "a": (2, layer("a", 2) | layer("first", 4) | reads("second", 2)),
            "a#2": (2, layer("a", 2) | reads("first")),
            # outputs of the first by group of the second, and by what is left of their position
            "first": (2, layer("first", 4) | layer("second", 3) | reads("out", 3)),
            "first#2": (2, layer("first", 4) | reads("second", 2)),
            "second": (3, layer("second", 2) | reads("out", 2)),
        },
        images,
    ),
    "channel_shuffle": Case(
        lambda: Net(
            lambda s, x: s.out(F.channel_shuffle(torch.sigmoid(s.a(x)), 4)), a=conv(3, 8), out=conv(8, 2)
        ),
        {"a": (8, layer("a") | reads("out"))},
        images,
    ),
    "a scale used twice": Case(
        lambda: Net(
            lambda s, x: s.left(s.a(x) * s.scale) + s.right(F.silu(s.b(x) + s.scale)),
            a=conv(3, 6), b=conv(3, 6), scale=nn.Parameter(torch.rand(6, 1, 1)), left=conv(6, 2), right=conv(6, 2),
        ),
        {"a": (6, layer("a") | layer("b") | rows("scale") | reads("left") | reads("right"))},
        images,
    ),
    "a layer used on its own output": Case(
        lambda: Net(
            lambda s, x: s.out(F.silu(s.shared(s.bn(s.shared(s.a(x)))))),
            a=conv(3, 6), shared=conv(6, 6, 3), bn=nn.BatchNorm2d(6), out=conv(6, 2),
        ),
        {"a": (6, layer("a") | layer("shared") | reads("shared") | norm("bn") | reads("out"))},
        images,
    ),
    "a matrix used from both sides": Case(
        lambda: Net(
            lambda s, x: s.out(torch.tanh(s.a(x) @ s.matrix) @ s.matrix),
            a=nn.Linear(6, 8), matrix=nn.Parameter(torch.randn(8, 8)), out=nn.Linear(8, 3),
        ),
        {"a": (8, layer("a") | rows("matrix") | {("matrix", 1, 1)} | reads("out"))},
        tokens,
    ),
    "consumed flattened and pooled": Case(
        lambda: Net(
            lambda s, x: s.flat((y := s.a(x)).flatten(1)) + s.pooled(y.mean((2, 3))),
            a=conv(3, 8), flat=nn.Linear(128, 3), pooled=nn.Linear(8, 3),
        ),
        {"a": (8, layer("a") | reads("flat", 16) | reads("pooled"))},
        images,
    ),
    "flattened with channels last": Case(
        lambda: Net(
            lambda s, x: s.flat(s.a(x).permute(0, 2, 3, 1).flatten(1)) + s.few(s.a(x)[:, :4].flatten(1)),
            a=conv(3, 8), flat=nn.Linear(128, 3), few=nn.Linear(64, 3),
        ),
        {
            "a": (4, layer("a") | reads("flat", 16) | reads("few", 16)),
            "a#2": (4, layer("a") | reads("flat", 16)),
        },
        images,
    ),
    "broadcast of a map": Case(
        lambda: Net(
            lambda s, x: s.out(s.a(x) * torch.sigmoid(s.map(x)) + s.b(x).mean(1, keepdim=True)),
            a=conv(3, 8), map=conv(3, 1), b=conv(3, 5), rest=conv(5, 2), out=conv(8, 2),
        ),
        {"a": (8, layer("a") | reads("out"))},
        images,
    ),
    "broadcast of one of several": Case(
        lambda: Net(lambda s, x: s.out(s.a(x) * torch.sigmoid(s.b(x)[:, 2:3])) + s.rest(s.b(x)),
                    a=conv(3, 8), b=conv(3, 5), out=conv(8, 2), rest=conv(5, 2)),
        {"a": (8, layer("a") | reads("out")), "b": (4, layer("b") | reads("rest"))},
        images,
    ),
    "channels in the batch": Case(
        lambda: Net(_in_batch, a=conv(3, 8), each=conv(1, 2, 3), out=conv(16, 2)),
        {"a": (8, layer("a") | reads("out", 2)), "each": (2, layer("each") | reads("out", 8))},
        images,
    ),
    "batch behind the channels": Case(
        lambda: Net(_batch_last, a=nn.Linear(6, 8), scale=nn.Parameter(torch.rand(8)), out=nn.Linear(8, 3)),
        {"a": (8, layer("a") | rows("scale") | reads("out"))},
        tokens,
    ),
    "samples exchanged with tokens": Case(
        lambda: Net(_samples_last, a=nn.Linear(6, 8), middle=nn.Linear(8, 7), out=nn.Linear(7, 3)),
        {"a": (8, layer("a") | reads("middle")), "middle": (7, layer("middle") | reads("out"))},
        tokens,
    ),
    "heads and widths in the other order": Case(
        lambda: Net(lambda s, x: s.out(_other_order(F.silu(s.a(x)))), a=nn.Linear(6, 8), out=nn.Linear(8, 3)),
        {"a": (8, layer("a") | reads("out"))},
        tokens,
    ),
    "added in two orders": Case(
        # channel j meets 4 * (j % 2) + j // 2: 0 and 7 meet themselves, 1-4-2 and 3-5-6 go in circles
        lambda: Net(_summed_in_two_orders, a=nn.Linear(6, 8), out=nn.Linear(8, 3)),
        {"a": (2, layer("a") | reads("out")), "a#2": (2, layer("a", 3) | reads("out", 3))},
        tokens,
    ),
    "torn and whole": Case(
        lambda: Net(
            _torn_and_whole, a=nn.Linear(6, 8), heads=nn.Linear(2, 3), widths=nn.Linear(4, 3), whole=nn.Linear(8, 3)
        ),
        {
            "a": (2, layer("a", 4) | reads("heads") | reads("whole", 4)),
            "a#2": (4, layer("a", 2) | reads("widths") | reads("whole", 2)),
        },
        tokens,
    ),
    "torn in two ways": Case(
        # 2 x 6 and 6 x 2: what is left of both is 2 x 3 x 2, and nobody reads the last 2
        lambda: Net(_torn_twice, a=nn.Linear(6, 12), left=nn.Linear(2, 3), right=nn.Linear(6, 3)),
        {
            "a": (2, layer("a", 6) | reads("left") | reads("right", 3)),
            "a#2": (3, layer("a", 4) | reads("right", 2)),
        },
        tokens,
    ),
    "torn in stages": Case(
        lambda: Net(_torn_in_stages, a=nn.Linear(6, 24), out=nn.Linear(8, 3), rest=nn.Linear(8, 3)),
        {
            "a": (8, layer("a") | reads("rest")),
            "a#2": (2, layer("a", 8) | reads("out", 4)),
            "a#3": (4, layer("a", 2) | reads("out", 2)),
        },
        tokens,
    ),
    "outer product": Case(
        lambda: Net(_outer, a=nn.Linear(6, 4), b=nn.Linear(6, 3), out=nn.Linear(12, 3)),
        {"a": (4, layer("a") | reads("out", 3)), "b": (3, layer("b") | reads("out", 4))},
        tokens,
    ),
    "outer product cut beside others": Case(
        lambda: Net(_outer_beside, a=nn.Linear(6, 4), b=nn.Linear(6, 3), c=nn.Linear(6, 5), out=nn.Linear(14, 3)),
        {
            "a": (3, layer("a") | reads("out", 3)),
            "b": (3, layer("b") | reads("out", 3)),
            "c": (5, layer("c") | reads("out")),
        },
        tokens,
    ),
    "tokens mixed as channels": Case(
        lambda: Net(
            _mixer, embed=nn.Linear(6, 8), channels1=nn.Linear(8, 10), channels2=nn.Linear(10, 8),
            tokens1=nn.Linear(5, 7), tokens2=nn.Linear(7, 5),
        ),
        {
            "channels1": (10, layer("channels1") | reads("channels2")),
            "tokens1": (7, layer("tokens1") | reads("tokens2")),
        },
        tokens,
    ),
    "every size the same": Case(
        lambda: Net(_square, a=nn.Linear(4, 4), b=conv(4, 4, 3), c=nn.Linear(4, 4), scale=nn.Parameter(torch.rand(4))),
        {"a": (4, layer("a") | reads("b")), "b": (4, layer("b") | rows("scale") | reads("c"))},
        lambda: (torch.randn(4, 4, 4, 4, dtype=torch.float64),),
    ),
}  # fmt: skip
