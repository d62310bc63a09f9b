# SPDX-License-Identifier: Apache-2.0
"""An image classifier in Lightning, compressed: the handwritten digits of scikit-learn, a minute on two cores.

    python examples/lightning_digits.py --bops-ratio 0.02

Needs the extra `lightning`. Started again with --resume it continues from Lightning's last checkpoint.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from djpq_nncf import CompressionController, DjpqError, create_compressed_model, verify_export
from djpq_nncf.demo import Batches, DigitsResNet, accuracy, load_digits_data, train
from djpq_nncf.integrations.lightning import CompressionCallback


class Classifier(pl.LightningModule):
    def __init__(self, ctrl: CompressionController, lr: float) -> None:
        super().__init__()
        self.model = ctrl.model
        self.ctrl = ctrl
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels) + self.ctrl.loss()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.ctrl.param_groups(lr=self.lr))


def run(arguments: argparse.Namespace) -> None:
    pl.seed_everything(arguments.seed)
    data = load_digits_data()
    original = DigitsResNet(arguments.width)
    train(original, Batches(data.train_images, data.train_labels, 32, seed=arguments.seed), epochs=arguments.epochs)
    print(f"FP32 accuracy: {accuracy(original, data.test_images, data.test_labels):.2%}")

    loader = DataLoader(TensorDataset(data.train_images, data.train_labels), 32, shuffle=True, drop_last=True)
    validation = DataLoader(TensorDataset(data.test_images, data.test_labels), 256)
    config = {
        "seed": arguments.seed,
        "compression": {
            "algorithm": "djpq",
            "target": {"bops_ratio": arguments.bops_ratio},
            "schedule": {"epochs": arguments.epochs},
        },
    }
    ctrl, _ = create_compressed_model(original, config, init_data=loader)
    checkpoint = ModelCheckpoint(arguments.out, save_last=True)
    trainer = pl.Trainer(
        max_epochs=arguments.epochs,
        callbacks=[CompressionCallback(ctrl), checkpoint],
        default_root_dir=arguments.out,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    last = arguments.out / "last.ckpt"
    resume = last if arguments.resume and last.is_file() else None
    trainer.fit(Classifier(ctrl, arguments.lr), loader, validation, ckpt_path=resume)

    print(ctrl.statistics().to_str())
    stripped = ctrl.strip().cpu()
    print(f"Compressed accuracy: {accuracy(stripped, data.test_images, data.test_labels):.2%}")
    for name in ("model.xml", "model.onnx"):
        ctrl.export_model(arguments.out / name)
        print(verify_export(arguments.out / name, stripped, data.test_images).to_str())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bops-ratio", type=float, default=0.02, help="bit operations, compressed / original")
    parser.add_argument("--epochs", type=int, default=12, help="of each of the two trainings")
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"), help="folder for checkpoints and files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        run(arguments)
    except DjpqError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
