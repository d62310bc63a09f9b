# SPDX-License-Identifier: Apache-2.0
"""Attention as people write it: heads, the width of queries and keys, and the width of values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.channels.cases._case import Case, Groups, Net, conv, images, layer, reads, rows, tokens


def heads(x: Tensor, count: int) -> Tensor:
    """[batch, tokens, features] as [batch, heads, tokens, width]."""
    return x.view(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return ((query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5).softmax(-1) @ value


def linears(**sizes: tuple[int, int]) -> dict[str, nn.Linear]:
    return {name: nn.Linear(*size) for name, size in sizes.items()}


FUSED: Groups = {
    "qkv/attention_heads": (2, layer("qkv", 12) | reads("out", 4)),
    "qkv/query_key_width": (4, layer("qkv", 4)),
    "qkv/value_width": (4, layer("qkv", 2) | reads("out", 2)),
}
"""Queries, keys and values of one layer: 2 heads of 4."""

SEPARATE: Groups = {
    "q/attention_heads": (2, layer("q", 3) | layer("k", 3) | layer("v", 4) | reads("out", 4)),
    "q/query_key_width": (3, layer("q", 2) | layer("k", 2)),
    "v/value_width": (4, layer("v", 2) | reads("out", 2)),
}
"""2 heads, queries and keys 3 wide, values 4."""

SHARED_KEYS: Groups = {
    "q/attention_heads": (2, layer("q", 6) | layer("k", 3) | layer("v", 4) | reads("out", 8)),
    "q/query_key_width": (3, layer("q", 4) | layer("k", 2)),
    "v/value_width": (4, layer("v", 2) | reads("out", 4)),
}
"""As SEPARATE, with two heads of queries for each head of keys and values."""


def _fused(function: Callable[[Tensor], tuple[Tensor, ...]]) -> Case:
    return Case(
        lambda: Net(lambda s, x: s.out(merged(attend(*function(s.qkv(x))))), **linears(qkv=(6, 24), out=(8, 3))),
        FUSED,
        tokens,
    )


def _separate(function: Callable[..., Tensor]) -> Case:
    return Case(
        lambda: Net(
            lambda s, x: s.out(merged(function(heads(s.q(x), 2), heads(s.k(x), 2), heads(s.v(x), 2)))),
            **linears(q=(6, 6), k=(6, 6), v=(6, 8), out=(8, 3)),
        ),
        SEPARATE,
        tokens,
    )


def _shared_keys(function: Callable[..., Tensor]) -> Case:
    return Case(
        lambda: Net(
            lambda s, x: s.out(merged(function(heads(s.q(x), 4), heads(s.k(x), 2), heads(s.v(x), 2)))),
            **linears(q=(6, 12), k=(6, 6), v=(6, 8), out=(16, 3)),
        ),
        SHARED_KEYS,
        tokens,
    )


def _expanded(x: Tensor) -> Tensor:
    batch, count, length, width = x.shape
    return x[:, :, None].expand(batch, count, 2, length, width).reshape(batch, 2 * count, length, width)


def _batched(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Heads as samples."""
    batch = query.shape[0]
    query, key, value = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
    mixed = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
    return mixed.view(batch, -1, *mixed.shape[1:])


def _einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", query, key).softmax(-1), value)


def _linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.softmax(-1) @ (key.softmax(-2).transpose(-2, -1) @ value)


def _rotated_halves(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat([-second, first], -1)


def _rotated_neighbours(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def _rotary(rotated: Callable[[Tensor], Tensor]) -> Case:
    def function(s: Net, x: Tensor) -> Tensor:
        query, key, value = heads(s.q(x), 2), heads(s.k(x), 2), heads(s.v(x), 2)
        query, key = (y * s.cos + rotated(y) * s.sin for y in (query, key))
        return s.out(merged(attend(query, key, value)))

    return Case(
        lambda: Net(
            function, cos=torch.randn(5, 4), sin=torch.randn(5, 4), **linears(q=(6, 8), k=(6, 8), v=(6, 6), out=(6, 3))
        ),
        {
            "q/attention_heads": (2, layer("q", 4) | layer("k", 4) | layer("v", 3) | reads("out", 3)),
            # pairs that are rotated together
            "q/query_key_width": (2, layer("q", 4) | layer("k", 4) | {("cos", 1, 2), ("sin", 1, 2)}),
            "v/value_width": (3, layer("v", 2) | reads("out", 2)),
        },
        tokens,
    )


def _talking_heads(s: Net, x: Tensor) -> Tensor:
    scores = heads(s.q(x), 4) @ heads(s.k(x), 4).transpose(-2, -1)
    weights = s.after(s.before(scores.permute(0, 2, 3, 1)).softmax(2)).permute(0, 3, 1, 2)
    return s.out(merged(weights @ heads(s.v(x), 4)))


def _cross_covariance(s: Net, x: Tensor) -> Tensor:
    query, key, value = (heads(part(x), 2).transpose(-2, -1) for part in (s.q, s.k, s.v))
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    mixed = (query @ key.transpose(-2, -1) * s.temperature).softmax(-1) @ value
    return s.out(mixed.permute(0, 3, 1, 2).flatten(2))


def _by_stages(s: Net, x: Tensor) -> Tensor:
    """First into queries, keys and values, then each into heads."""
    parts = s.qkv(x).view(x.shape[0], 5, 3, 8)
    return s.out(merged(attend(*(heads(parts[:, :, which], 2) for which in range(3)))))


def _torn_and_whole(s: Net, x: Tensor) -> Tensor:
    query = s.q(x)
    mixed = merged(attend(heads(query, 2), heads(s.k(x), 2), heads(s.v(x), 2)))
    return s.out(mixed) + s.whole(F.silu(query))


def _self_attention(s: Net, x: Tensor) -> Tensor:
    x = heads(s.x(x), 2)
    return s.out(merged(attend(x, x, x)))


def _encoder(s: Net, x: Tensor) -> Tensor:
    """Before each half a norm; the stream is read by the last norm and the head."""
    x = s.embed(x) + s.position
    normed = s.norm1(x)
    query, key, value = (heads(part(normed), 2) for part in (s.q, s.k, s.v))
    x = x + s.out(merged(F.scaled_dot_product_attention(query, key, value)))
    x = x + s.down(F.gelu(s.up(s.norm2(x))))
    return s.head(s.norm3(x)[:, 0])


def _module(s: Net, x: Tensor) -> Tensor:
    y = s.embed(x).transpose(0, 1)
    return s.head(s.attention(y, y, y)[0].transpose(0, 1))


def _window_attention(s: Net, x: Tensor) -> Tensor:
    """2 x 2 windows of 4 x 4 positions, shifted by one, with a table of relative positions and a mask."""
    batch = x.shape[0]
    x = s.embed(x).permute(0, 2, 3, 1)
    windows = torch.roll(x, (-1, -1), (1, 2)).view(batch, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
    query, key, value = s.qkv(windows).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    scores = query @ key.transpose(-2, -1)
    scores = scores + s.table[s.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
    scores = scores.view(batch, 4, 2, 4, 4) + s.offsets.unsqueeze(1).unsqueeze(0)
    mixed = s.out(merged(scores.view(-1, 2, 4, 4).softmax(-1) @ value))
    mixed = mixed.view(batch, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, 8)
    return s.head((x + torch.roll(mixed, (1, 1), (1, 2))).mean((1, 2)))


def _unfolded_attention(s: Net, x: Tensor) -> Tensor:
    """Channels, samples and rows merge into one dimension on the way to patches and back."""
    batch = x.shape[0]
    x = s.embed(x)
    y = x.reshape(batch * 8 * 2, 2, 2, 2).transpose(1, 2).reshape(batch, 8, 4, 4).transpose(1, 3).reshape(-1, 4, 8)
    y = y + s.down(F.silu(s.up(s.norm(y))))
    y = y + s.project(merged(attend(heads(s.q(y), 2), heads(s.k(y), 2), heads(s.v(y), 2))))
    y = y.view(batch, 4, 4, 8).transpose(1, 3).reshape(batch * 8 * 2, 2, 2, 2).transpose(1, 2)
    return s.head(torch.cat([x, s.fuse(y.reshape(batch, 8, 4, 4))], 1))


def _all_four(s: Net, x: Tensor) -> Tensor:
    """4 samples, 4 tokens, 4 heads of 4; the order of the last four dimensions is told by the permutation alone."""
    query, key, value = s.qkv(x).reshape(x.shape[0], 4, 4, 4, 3).permute(4, 0, 3, 1, 2).unbind(0)
    return s.out(merged(attend(query, key, value)))


def _over_positions(s: Net, x: Tensor) -> Tensor:
    """Channels as the width of queries and keys, positions as tokens."""
    query, key, value = (part(x).flatten(2) for part in (s.q, s.k, s.v))
    weights = (query.transpose(1, 2) @ key).softmax(-1)
    return s.out((value @ weights.transpose(1, 2)).view(x.shape[0], 8, 4, 4))


ATTENTION: dict[str, Case] = {
    "fused by unbind": _fused(lambda y: y.reshape(y.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)),
    "fused by chunk": _fused(lambda y: tuple(heads(part, 2) for part in y.chunk(3, -1))),
    "fused by stages": Case(
        lambda: Net(_by_stages, **linears(qkv=(6, 24), out=(8, 3))), FUSED, tokens
    ),
    "fused within heads": Case(
        # each head has its queries, keys and values side by side
        lambda: Net(
            lambda s, x: s.out(merged(attend(*heads(s.qkv(x), 2).chunk(3, -1)))), **linears(qkv=(6, 24), out=(8, 3))
        ),
        FUSED,
        tokens,
    ),
    "separate": _separate(attend),
    "separate, one operator": _separate(F.scaled_dot_product_attention),
    "separate, heads as samples": _separate(_batched),
    "separate, einsum": _separate(_einsum),
    "separate, linear": _separate(_linear_attention),
    "keys repeated": _shared_keys(
        lambda q, k, v: attend(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1))
    ),
    "keys expanded": _shared_keys(lambda q, k, v: attend(q, _expanded(k), _expanded(v))),
    "keys shared by the operator": _shared_keys(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    ),
    "rotated halves": _rotary(_rotated_halves),
    "rotated neighbours": _rotary(_rotated_neighbours),
    "talking heads": Case(
        lambda: Net(
            _talking_heads, **linears(q=(6, 8), k=(6, 8), v=(6, 12), before=(4, 4), after=(4, 4), out=(12, 3))
        ),
        {
            "q/attention_heads": (4, layer("q", 2) | layer("k", 2) | reads("before")),
            "q/query_key_width": (2, layer("q", 4) | layer("k", 4)),
            "before": (4, layer("before") | reads("after")),
            "after/attention_heads": (4, layer("v", 3) | layer("after") | reads("out", 3)),
            "v/value_width": (3, layer("v", 4) | reads("out", 4)),
        },
        tokens,
    ),
    "cross-covariance": Case(
        lambda: Net(
            _cross_covariance, temperature=nn.Parameter(torch.rand(2, 1, 1)),
            **linears(q=(6, 8), k=(6, 10), v=(6, 10), out=(8, 3)),
        ),
        {
            "q/attention_heads": (
                2, layer("q", 4) | layer("k", 5) | layer("v", 5) | rows("temperature") | reads("out", 4),
            ),
            "q": (4, layer("q", 2) | reads("out", 2)),
            "k/value_width": (5, layer("k", 2) | layer("v", 2)),
        },
        tokens,
    ),
    "torn and whole": Case(
        lambda: Net(_torn_and_whole, **linears(q=(6, 8), k=(6, 8), v=(6, 10), out=(10, 3), whole=(8, 3))),
        {
            "q/attention_heads": (
                2, layer("q", 4) | layer("k", 4) | layer("v", 5) | reads("out", 5) | reads("whole", 4),
            ),
            "q/query_key_width": (4, layer("q", 2) | layer("k", 2) | reads("whole", 2)),
            "v/value_width": (5, layer("v", 2) | reads("out", 2)),
        },
        tokens,
    ),
    "one projection for all three": Case(
        lambda: Net(_self_attention, **linears(x=(6, 8), out=(8, 3))),
        {
            "x/attention_heads": (2, layer("x", 4) | reads("out", 4)),
            "x/query_key_width": (4, layer("x", 2) | reads("out", 2)),
        },
        tokens,
    ),
    "encoder": Case(
        lambda: Net(
            _encoder, position=nn.Parameter(torch.randn(1, 5, 8)),
            norm1=nn.LayerNorm(8), norm2=nn.LayerNorm(8), norm3=nn.LayerNorm(8),
            **linears(embed=(6, 8), q=(8, 6), k=(8, 6), v=(8, 10), out=(10, 8), up=(8, 12), down=(12, 8), head=(8, 3)),
        ),
        {
            "embed": (
                8,
                layer("embed") | {("position", 2, 1)} | layer("norm1") | layer("norm2") | layer("norm3")
                | reads("q") | reads("k") | reads("v") | layer("out") | reads("up") | layer("down") | reads("head"),
            ),
            "q/attention_heads": (2, layer("q", 3) | layer("k", 3) | layer("v", 5) | reads("out", 5)),
            "q/query_key_width": (3, layer("q", 2) | layer("k", 2)),
            "v/value_width": (5, layer("v", 2) | reads("out", 2)),
            "up": (12, layer("up") | reads("down")),
        },
        tokens,
    ),
    "MultiheadAttention, tokens first": Case(
        lambda: Net(_module, attention=nn.MultiheadAttention(8, 2), **linears(embed=(6, 8), head=(8, 3))),
        {
            "embed": (8, layer("embed") | {("attention.in_proj_weight", 1, 1)}),
            "attention.in_proj_weight/attention_heads": (
                2,
                rows("attention.in_proj_weight", 12) | rows("attention.in_proj_bias", 12)
                | reads("attention.out_proj", 4),
            ),
            "attention.in_proj_weight/query_key_width": (
                4, rows("attention.in_proj_weight", 4) | rows("attention.in_proj_bias", 4),
            ),
            "attention.in_proj_weight/value_width": (
                4,
                rows("attention.in_proj_weight", 2) | rows("attention.in_proj_bias", 2)
                | reads("attention.out_proj", 2),
            ),
            "attention.out_proj": (8, layer("attention.out_proj") | reads("head")),
        },
        tokens,
    ),
    "shifted windows": Case(
        lambda: Net(
            _window_attention, embed=conv(3, 8), table=nn.Parameter(torch.randn(9, 2)),
            index=torch.randint(0, 9, (4, 4)), offsets=torch.randn(4, 4, 4),
            **linears(qkv=(8, 24), out=(8, 8), head=(8, 3)),
        ),
        {
            "embed": (8, layer("embed") | reads("qkv") | layer("out") | reads("head")),
            "qkv/attention_heads": (2, layer("qkv", 12) | {("table", 1, 1)} | reads("out", 4)),
            "qkv/query_key_width": (4, layer("qkv", 4)),
            "qkv/value_width": (4, layer("qkv", 2) | reads("out", 2)),
        },
        images,
    ),
    "unfolded patches": Case(
        lambda: Net(
            _unfolded_attention, embed=conv(3, 8, 3), norm=nn.LayerNorm(8), fuse=conv(8, 6), head=conv(14, 2),
            **linears(up=(8, 10), down=(10, 8), q=(8, 8), k=(8, 8), v=(8, 6), project=(6, 8)),
        ),
        {
            "embed": (
                8,
                layer("embed") | layer("norm") | reads("up") | layer("down") | reads("q") | reads("k") | reads("v")
                | layer("project") | reads("fuse") | reads("head"),
            ),
            "up": (10, layer("up") | reads("down")),
            "q/attention_heads": (2, layer("q", 4) | layer("k", 4) | layer("v", 3) | reads("project", 3)),
            "q/query_key_width": (4, layer("q", 2) | layer("k", 2)),
            "v/value_width": (3, layer("v", 2) | reads("project", 2)),
            "fuse": (6, layer("fuse") | reads("head")),
        },
        images,
    ),
    "every size is four": Case(
        lambda: Net(_all_four, **linears(qkv=(16, 48), out=(16, 4))),
        {
            "qkv/attention_heads": (4, layer("qkv", 12) | reads("out", 4)),
            "qkv/query_key_width": (4, layer("qkv", 8)),
            "qkv/value_width": (4, layer("qkv", 4) | reads("out", 4)),
        },
        lambda: tokens(4, 4, 16),
    ),
    "over positions": Case(
        lambda: Net(_over_positions, q=conv(3, 6), k=conv(3, 6), v=conv(3, 8), out=conv(8, 2)),
        {
            "q/query_key_width": (6, layer("q") | layer("k")),
            "v": (8, layer("v") | reads("out")),
        },
        images,
    ),
}  # fmt: skip
