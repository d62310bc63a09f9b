# SPDX-License-Identifier: Apache-2.0
"""A compression led by the Trainer of Hugging Face: the same as a plain loop, and the same after a resumption."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from djpq_nncf import CompressionController, create_compressed_model
from djpq_nncf.errors import CheckpointError

transformers = pytest.importorskip("transformers")
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from djpq_nncf.integrations.transformers import STATE_FILE, CompressionCallback, CompressionTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
CONFIG = {
    "seed": 3,
    "compression": {
        "algorithm": "djpq",
        "target": {"bops_ratio": 0.05},
        "schedule": {"epochs": 3, "freeze_epoch": 2},
        "initializer": {"range": {"num_init_samples": 8}},
    },
}
SAMPLES = [
    {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(number % 2)}
    for number, ids in enumerate(torch.randint(0, 20, (48, 6), generator=torch.Generator().manual_seed(0)))
]


class InOrder(CompressionTrainer):
    """Without shuffling, so that a plain loop sees the same batches."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(SAMPLES, 8)  # type: ignore[arg-type]


def compressed() -> CompressionController:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = BertConfig(vocab_size=20, max_position_embeddings=6, **sizes, **dropout)
    loader = DataLoader(SAMPLES, 8)  # type: ignore[arg-type]
    ctrl, _ = create_compressed_model(BertForSequenceClassification(bert), CONFIG, init_data=loader)
    return ctrl


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    loss = F.cross_entropy(outputs.logits, labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def trainer_of(ctrl: CompressionController, folder: Path, **options: Any) -> InOrder:
    arguments = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = TrainingArguments(str(folder), **{**arguments, **options})
    return InOrder(ctrl, args=args, train_dataset=SAMPLES, eval_dataset=SAMPLES[:8], compute_loss_func=loss_of)


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CompressionController:
    ctrl = compressed()
    trainer_of(ctrl, tmp_path_factory.mktemp("whole")).train()
    return ctrl


def test_as_a_plain_loop(whole: CompressionController) -> None:
    ctrl = compressed()
    optimizer = torch.optim.AdamW(ctrl.param_groups(lr=1e-3, weight_decay=0.0))
    for _ in range(3):
        ctrl.scheduler.epoch_step()
        ctrl.model.train()
        for batch in DataLoader(SAMPLES, 8):  # type: ignore[arg-type]
            ctrl.scheduler.step()
            outputs = ctrl.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            loss = loss_of(outputs, batch["labels"]) + ctrl.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert ctrl.get_compression_state() == whole.get_compression_state()
    assert same(ctrl.model, whole.model)


def test_plain_trainer(whole: CompressionController, tmp_path: Path) -> None:
    """As docs/training.md says."""

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **others: Any) -> None:
            ctrl.scheduler.step()

    ctrl = compressed()
    args = trainer_of(ctrl, tmp_path).args
    trainer = Trainer(
        ctrl.model,
        args,
        compute_loss_func=lambda *given, **named: loss_of(*given, **named) + ctrl.loss(),
        callbacks=[CompressionCallback(ctrl), Steps()],
        optimizers=(torch.optim.AdamW(ctrl.param_groups(lr=1e-3, weight_decay=0.0)), None),
        train_dataset=SAMPLES,
    )
    trainer.get_train_dataloader = lambda: DataLoader(SAMPLES, 8)
    trainer.train()
    assert ctrl.get_compression_state() == whole.get_compression_state()
    assert same(ctrl.model, whole.model)


@pytest.mark.parametrize("steps", [8, 12, 16])  # in the joint phase, at the freeze, after it
def test_resumed(whole: CompressionController, tmp_path: Path, steps: int) -> None:
    trainer_of(compressed(), tmp_path, max_steps=steps, save_strategy="steps", save_steps=steps).train()
    again = compressed()
    trainer_of(again, tmp_path).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps}"))
    assert again.get_compression_state() == whole.get_compression_state()
    assert same(again.model, whole.model)


@pytest.mark.parametrize("outside", [True, False])
def test_accumulated_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: bool) -> None:
    """Two batches of 4 are one of 8 for the weights, and two steps for the controller, whose loss counts once."""
    gradients = []
    for size, accumulated in ((8, 1), (4, 2)):
        ctrl = compressed()
        probe = torch.zeros((), requires_grad=True)
        monkeypatch.setattr(ctrl, "loss", lambda probe=probe: 3 * probe)
        trainer = trainer_of(ctrl, tmp_path, gradient_accumulation_steps=accumulated, max_steps=1)
        if not outside:  # a loss without the number of items, which Trainer divides itself
            trainer.compute_loss_func = None
            trainer.model_accepts_loss_kwargs = False
            ctrl.model.register_forward_pre_hook(_without_labels, with_kwargs=True)
            ctrl.model.register_forward_hook(_with_loss, with_kwargs=True)
        loader = DataLoader(SAMPLES, size)  # type: ignore[arg-type]
        monkeypatch.setattr(trainer, "get_train_dataloader", lambda loader=loader: loader)
        optimizer = trainer.create_optimizer()
        monkeypatch.setattr(optimizer, "step", lambda *_, of=ctrl.model: gradients.append(_gradients(of)))
        trainer.train()
        assert ctrl.scheduler.global_step == accumulated
        assert probe.grad == pytest.approx(3)
    one, two = gradients
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    named = {name: p.grad for name, p in model.named_parameters() if not name.startswith("compression.")}
    return {name: gradient.clone() for name, gradient in named.items() if gradient is not None}


_labels: list[Tensor] = []


def _without_labels(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    _labels.append(kwargs["labels"])
    return args, {name: value for name, value in kwargs.items() if name != "labels"}


def _with_loss(model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> dict[str, Tensor]:
    return {"loss": F.cross_entropy(outputs.logits, _labels.pop()), "logits": outputs.logits}


def test_scalars_are_logged(tmp_path: Path) -> None:
    ctrl = compressed()
    trainer = trainer_of(ctrl, tmp_path)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 18
    assert logged[-1]["bops_ratio"] == pytest.approx(ctrl.scalars()["bops_ratio"])


def test_best_model_is_one_after_the_freeze(tmp_path: Path) -> None:
    """The first checkpoints have the better scores, and are not compressed: the third is the best that is."""
    ctrl, scores = compressed(), iter((0.9, 0.8, 0.7, 0.6))
    options = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    trainer = trainer_of(ctrl, tmp_path, num_train_epochs=4, metric_for_best_model="score", **options)
    trainer.compute_metrics = lambda predicted: {"score": next(scores)}
    trainer.train()
    checkpoint = tmp_path / "checkpoint-18"
    assert ctrl.get_compression_state() == json.loads((checkpoint / STATE_FILE).read_text())
    for name, value in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(ctrl.model.state_dict()[name], value), name
    assert ctrl.statistics().djpq.bops_ratio <= 0.05


def test_another_trainers_checkpoint(tmp_path: Path) -> None:
    trainer_of(compressed(), tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert json.loads((checkpoint / STATE_FILE).read_text())["algorithm"] == "djpq"
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match="Resume from a checkpoint that CompressionTrainer saved"):
        trainer_of(compressed(), tmp_path).train(resume_from_checkpoint=str(checkpoint))
