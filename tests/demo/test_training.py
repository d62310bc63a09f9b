# SPDX-License-Identifier: Apache-2.0
"""The log of the demo's training."""

import pytest
import torch

from djpq_nncf import create_compressed_model
from djpq_nncf.demo import Batches
from djpq_nncf.demo._training import fine_tune
from tests.run.tiny import CONFIG, network


def test_losses_of_an_epoch_are_means() -> None:
    images, labels = torch.rand(24, 1, 6, 6), torch.arange(24) % 4
    batches = Batches(images, labels, 8, seed=0)
    ctrl, model = create_compressed_model(network(), CONFIG, init_data=batches)
    computed: list[float] = []
    loss_of = ctrl.loss

    def record() -> torch.Tensor:
        loss = loss_of()
        computed.append(loss.item())
        return loss

    ctrl.loss = record  # type: ignore[method-assign]
    rows = [row for row in fine_tune(ctrl, model, batches, epochs=2) if row["event"] == "epoch"]
    assert len(computed) == 2 * len(batches) == 6
    assert len(set(computed[:3])) == 3
    for row, own in zip(rows, (computed[:3], computed[3:]), strict=True):
        assert row["compression_loss"] == pytest.approx(sum(own) / 3)
        assert row["loss"] == pytest.approx(row["task_loss"] + row["compression_loss"])
