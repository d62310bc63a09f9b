# SPDX-License-Identifier: Apache-2.0
"""Small networks that multiply activations, each in a way of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LENGTH, WORDS = 16, 4, 7, 30


class Attention(nn.Module):
    """Queries, keys and values from layers of their own; options of ``scaled_dot_product_attention``."""

    def __init__(self, key_heads: int = HEADS, **options: Any) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key, self.value = (nn.Linear(WIDTH, WIDTH // HEADS * key_heads) for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.options = options

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.options)
        return self.out(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer's encoder: words, positions, one block, a head for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions(torch.arange(LENGTH))
        x = x + self.attention(self.norm1(x), mask.bool()[:, None, None])
        return self.head(x + self.mlp(self.norm2(x)))


class Causal(nn.Module):
    """A language model as GPT-2 is written: weights [in, out], one layer for all three, table and head tied."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) * 0.3)
        self.bias = nn.Parameter(torch.randn(3 * WIDTH) * 0.1)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        fused = torch.addmm(self.bias, self.norm(x).flatten(0, 1), self.weight).unflatten(0, (-1, LENGTH))
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in fused.chunk(3, -1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head(x + attended.transpose(1, 2).flatten(2))


class WrittenOut(nn.Module):
    """Attention as einsums, and as products of three-dimensional tensors; parameters multiplied from either side."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.join = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, WIDTH) * 0.3)
        self.right = nn.Parameter(torch.randn(12, WIDTH) * 0.3)
        self.left = nn.Parameter(torch.randn(5, LENGTH) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (HEADS, -1)) for layer in (self.query, self.key, self.value))
        scores = torch.einsum("bihd,bjhd->bhij", query, key) / 2
        x = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value)
        x = torch.einsum("bihd,hdo->bio", x, self.join)
        x = torch.baddbmm(x, torch.bmm(x, x.transpose(1, 2)).sigmoid(), x, beta=0.5, alpha=0.1)
        return self.left @ (x @ self.right.t()).relu()


@dataclass(frozen=True)
class Case:
    """A network with an example input."""

    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]


def tokens() -> Tensor:
    return torch.randint(0, WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(0))


def words() -> Tensor:
    return torch.randn(4, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))


def padding() -> Tensor:
    """Which of the tokens count; of the last sample none does."""
    lengths = torch.tensor([LENGTH, 4, 2, 0])
    return (torch.arange(LENGTH) < lengths[:, None]).long()


CASES = {
    "block": Case(Block, (tokens(), padding())),
    "causal": Case(Causal, (tokens(),)),
    "written_out": Case(WrittenOut, (words(),)),
}
