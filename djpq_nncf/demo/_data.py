# SPDX-License-Identifier: Apache-2.0
"""Small data sets that fit in memory, and batches of them in an order that a seed decides."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


class Batches:
    """What a shuffling data loader is, for tensors in memory.

    Args:
        inputs: [samples, ...].
        targets: [samples] class indices.
        batch_size: a smaller rest is left out.
        seed: of the order, which is a new one in every pass.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int, seed: int = 0) -> None:
        self._inputs, self._targets, self._batch_size = inputs, targets, batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._inputs) // self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._inputs), generator=self._generator)
        for chosen in order.split(self._batch_size)[: len(self)]:
            yield self._inputs[chosen], self._targets[chosen]


@dataclass(frozen=True)
class ImageData:
    """Images [samples, channels, height, width], normalised, and class indices [samples], split in two."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
