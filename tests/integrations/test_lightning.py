# SPDX-License-Identifier: Apache-2.0
"""A compression led by Lightning: the same as a plain loop, and the same after a resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from djpq_nncf import CompressionController, create_compressed_model
from tests.run.digits import CONFIG, network

pl = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from djpq_nncf.integrations.lightning import CompressionCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
# six equal batches, because Lightning resumes within an epoch with the first batches of the loader
DATA = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)).repeat(6, 1, 1, 1)
LABELS = (torch.arange(16) % 10).repeat(6)
LOADER = DataLoader(TensorDataset(DATA, LABELS), 16)


class Module(pl.LightningModule):  # type: ignore[misc]
    def __init__(self, ctrl: CompressionController) -> None:
        super().__init__()
        self.model, self.ctrl = ctrl.model, ctrl

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels) + self.ctrl.loss()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("agreement", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.ctrl.param_groups(lr=1e-3))


def compressed() -> CompressionController:
    ctrl, _ = create_compressed_model(network(), CONFIG, init_data=LOADER)
    return ctrl


def fit(
    ctrl: CompressionController, folder: Path, *, resume: Path | None = None, save_at: int | None = None, **options: Any
) -> Any:
    save = [ModelCheckpoint(folder, "{step}", every_n_train_steps=save_at)] if save_at else []
    trainer = pl.Trainer(
        **{"max_epochs": 3, **options},
        callbacks=[CompressionCallback(ctrl), *save],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Module(ctrl), LOADER, LOADER, ckpt_path=resume, weights_only=False if resume else None)
    return trainer


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CompressionController:
    ctrl = compressed()
    fit(ctrl, tmp_path_factory.mktemp("whole"), enable_checkpointing=False)
    return ctrl


def test_as_a_plain_loop(whole: CompressionController) -> None:
    ctrl = compressed()
    optimizer = torch.optim.Adam(ctrl.param_groups(lr=1e-3))
    for _ in range(3):
        ctrl.scheduler.epoch_step()
        ctrl.model.train()
        for images, labels in LOADER:
            ctrl.scheduler.step()
            loss = F.cross_entropy(ctrl.model(images), labels) + ctrl.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert same(ctrl.model, whole.model)
    assert ctrl.get_compression_state() == whole.get_compression_state()


@pytest.mark.parametrize("steps", [8, 12, 16])  # in the joint phase, at the freeze, after it
def test_resumed(whole: CompressionController, tmp_path: Path, steps: int) -> None:
    fit(compressed(), tmp_path, save_at=steps, max_steps=steps)
    again = compressed()
    fit(again, tmp_path, resume=tmp_path / f"step={steps}.ckpt")
    assert again.get_compression_state() == whole.get_compression_state()
    assert same(again.model, whole.model)


def test_each_accumulated_batch_is_a_step(tmp_path: Path) -> None:
    ctrl = compressed()
    fit(ctrl, tmp_path, accumulate_grad_batches=2, enable_checkpointing=False)
    assert ctrl.scheduler.global_step == 18
    assert 0.049 <= ctrl.statistics().djpq.bops_ratio <= 0.05


def test_scalars_are_logged(tmp_path: Path) -> None:
    ctrl = compressed()
    trainer = fit(ctrl, tmp_path, log_every_n_steps=1, enable_checkpointing=False)
    for name, value in ctrl.scalars().items():
        assert trainer.logged_metrics[name] == pytest.approx(value)


def test_nothing_is_logged_where_lightning_is_told_so(tmp_path: Path) -> None:
    trainer = fit(compressed(), tmp_path, log_every_n_steps=0, max_steps=2, enable_checkpointing=False)
    assert "bops_ratio" not in trainer.logged_metrics
