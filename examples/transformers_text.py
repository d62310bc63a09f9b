# SPDX-License-Identifier: Apache-2.0
"""A text classifier in the Trainer of Hugging Face, compressed: a small BERT that reads restaurant reviews.

    python examples/transformers_text.py --bops-ratio 0.02

A review says something about two things, "the waiter was not very slow , the food was bland", and likes neither, one or
both of them. Reviews come from a grammar, and the network starts from random weights, so nothing is downloaded. Needs
the extra `transformers`. Started again with --resume it continues from Trainer's last checkpoint.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from djpq_nncf import DjpqError, create_compressed_model, verify_export
from djpq_nncf.integrations.transformers import CompressionTrainer

ADJECTIVES = {
    "food": ("fresh tasty warm delicious", "bland cold burnt salty"),
    "waiter": ("friendly quick attentive", "slow rude careless"),
    "music": ("quiet charming lively", "loud dull harsh"),
    "room": ("bright clean cosy", "dark dirty cramped"),
}
ADVERBS = ("", "very", "rather", "really")
LENGTH = 16
WORDS = sorted({word for pair in ADJECTIVES.values() for text in pair for word in text.split()} | set(ADJECTIVES))
VOCABULARY = ["[PAD]", "[CLS]", ",", "the", "was", "not", *filter(None, ADVERBS), *WORDS]
IDS = {word: number for number, word in enumerate(VOCABULARY)}


class Reviews(Dataset[dict[str, Tensor]]):
    """Reviews as dicts of ``input_ids`` and ``attention_mask`` [LENGTH] and ``labels`` []."""

    def __init__(self, count: int, seed: int) -> None:
        source = random.Random(seed)
        self._samples = [encode(*review(source)) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._samples[index]


def review(source: random.Random) -> tuple[str, int]:
    """The text, and how many things it likes."""
    clauses, likes = [], 0
    for thing in source.sample(sorted(ADJECTIVES), 2):
        good, negated = source.random() < 0.5, source.random() < 0.5
        adjective = source.choice(ADJECTIVES[thing][0 if good else 1].split())
        words = ("the", thing, "was", "not" if negated else "", source.choice(ADVERBS), adjective)
        clauses.append(" ".join(filter(None, words)))
        likes += good != negated
    return " , ".join(clauses), likes


def encode(text: str, label: int) -> dict[str, Tensor]:
    ids = [IDS[word] for word in ("[CLS]", *text.split())]
    padding = LENGTH - len(ids)
    return {
        "input_ids": torch.tensor(ids + [IDS["[PAD]"]] * padding),
        "attention_mask": torch.tensor([1] * len(ids) + [0] * padding),
        "labels": torch.tensor(label),
    }


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The network is captured without labels, which no inference has, so the loss is computed outside of it."""
    return F.cross_entropy(outputs.logits, labels)


def accuracy_of(prediction: EvalPrediction) -> dict[str, float]:
    predicted = np.argmax(prediction.predictions, axis=1)
    return {"accuracy": float((predicted == prediction.label_ids).mean())}


def run(arguments: argparse.Namespace) -> None:
    set_seed(arguments.seed)
    train, test = Reviews(arguments.samples, seed=1), Reviews(512, seed=2)
    bert = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
        id2label={0: "likes neither", 1: "likes one", 2: "likes both"},
    )
    # Trainer's usual arguments, the same for both trainings
    options: dict[str, Any] = {
        "num_train_epochs": arguments.epochs,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 128,
        "learning_rate": arguments.lr,
        "eval_strategy": "epoch",
        "logging_steps": 64,
        "warmup_steps": 100,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        "seed": arguments.seed,
    }
    common: dict[str, Any] = {"train_dataset": train, "eval_dataset": test, "compute_metrics": accuracy_of}

    original: nn.Module = BertForSequenceClassification(bert)
    first = TrainingArguments(str(arguments.out / "fp32"), save_strategy="no", **options)
    trainer = Trainer(original, args=first, **common)
    trainer.train()
    print(f"FP32 accuracy: {trainer.evaluate()['eval_accuracy']:.2%}")

    config = {
        "seed": arguments.seed,
        "compression": {
            "algorithm": "djpq",
            "target": {"bops_ratio": arguments.bops_ratio},
            "schedule": {"epochs": arguments.epochs},
        },
    }
    loader = DataLoader(train, 32, drop_last=True)
    ctrl, _ = create_compressed_model(original.cpu(), config, init_data=loader)
    checkpoints = arguments.out / "checkpoints"
    args = TrainingArguments(str(checkpoints), save_strategy="epoch", save_total_limit=2, **options)
    compression = CompressionTrainer(ctrl, args=args, compute_loss_func=loss_of, **common)
    last = get_last_checkpoint(str(checkpoints)) if arguments.resume and checkpoints.is_dir() else None
    compression.train(resume_from_checkpoint=last)

    print(ctrl.statistics().to_str())
    print(f"Compressed accuracy: {compression.evaluate()['eval_accuracy']:.2%}")
    stripped = ctrl.strip().cpu()
    batch = next(iter(DataLoader(test, 64)))
    samples = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for name in ("model.xml", "model.onnx"):
        ctrl.export_model(arguments.out / name)
        print(verify_export(arguments.out / name, stripped, samples).to_str())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bops-ratio", type=float, default=0.02, help="bit operations, compressed / original")
    parser.add_argument("--epochs", type=int, default=10, help="of each of the two trainings")
    parser.add_argument("--samples", type=int, default=4096, help="reviews to train on")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/transformers"), help="folder for checkpoints and files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        run(arguments)
    except DjpqError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
