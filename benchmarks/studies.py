# SPDX-License-Identifier: Apache-2.0
"""Studies of accuracy that take hours: runs that are independent of each other, each kept as it finishes."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from image_classification import EPOCHS, RATES, accuracy, pretrained, train
from image_data import Batches, load
from performance_page import machine
from torch import nn

from djpq_nncf import create_compressed_model
from djpq_nncf.algorithms._distillation import Distillation, DistillationSettings

Key = tuple[str | float, ...]
DISTILLATION = DistillationSettings("softmax", 1.0, 1.0)
RESULTS = Path(__file__).parent / "results"


class Study:
    """Finished runs in a file of the repository, a JSON object a line.

    Two processes may share a study: each run is appended in one write, and taken by one of them.

    Args:
        name: of the file.
        fields: what a run is identified by.
    """

    def __init__(self, name: str, fields: tuple[str, ...]) -> None:
        self._path = RESULTS / f"{name}.jsonl"
        self._fields = fields

    def finished(self) -> dict[Key, dict[str, Any]]:
        """Results by key."""
        if not self._path.exists():
            return {}
        results = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        return {tuple(result[field] for field in self._fields): result for result in results}

    def machines(self) -> str:
        """What the finished runs were made on."""
        return "; ".join(dict.fromkeys(result["machine"] for result in self.finished().values()))

    def run(self, keys: Iterable[Key], measure: Callable[..., Mapping[str, Any]], share: str = "1/1") -> None:
        """Call ``measure(*key)`` for what is missing.

        Args:
            keys: what is wanted.
            measure: makes one run.
            share: "k/n" takes every n-th of the keys, from the k-th on.
        """
        part, parts = map(int, share.split("/"))
        for key in list(keys)[part - 1 :: parts]:
            if key in self.finished():
                continue
            start = time.perf_counter()
            result = {**dict(zip(self._fields, key, strict=True)), **measure(*key)}
            result |= {"seconds": round(time.perf_counter() - start, 1), "machine": machine()}
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(result, flush=True)


def spread(values: Iterable[float], digits: int = 2, sign: str = "+") -> str:
    """Mean and standard deviation; of a single value that alone."""
    chosen = list(values)
    deviation = f" ± {stdev(chosen):.{digits}f}" if len(chosen) > 1 else ""
    return f"{mean(chosen):{sign}.{digits}f}{deviation}"


def fine_tune(
    model: nn.Module,
    network: str,
    data: str,
    seed: int,
    djpq: Mapping[str, Any],
    *,
    device: str = "ANY",
    epochs: int | None = None,
    teacher: nn.Module | None = None,
    distillation: DistillationSettings = DISTILLATION,
    training: Mapping[str, Any] | None = None,
) -> Any:
    """The controller after a training of ``epochs`` (those of the data set) under these settings of djpq.

    ``model`` is the named network, or what a first stage left of it. The teacher is given here and not by the config,
    since a second stage starts from a network that is pruned already. ``training``: other arguments of `train`.
    """
    epochs = epochs or EPOCHS[data]
    torch.manual_seed(seed)
    batches = Batches(load(data), seed)
    entry = {"algorithm": "djpq", **djpq, "schedule": {"epochs": epochs, **djpq.get("schedule", {})}}
    ctrl, compressed = create_compressed_model(
        model, {"seed": seed, "target_device": device, "compression": entry}, init_data=batches
    )
    if teacher is not None:
        ctrl.terms.append(Distillation(compressed, teacher, distillation))
    train(compressed, batches, epochs, **{"lr": RATES[network], "ctrl": ctrl, **(training or {})})
    return ctrl


def scores(model: nn.Module, network: str, data: str) -> dict[str, float]:
    """Points lost against the FP32 network that all start from, in validation and test."""
    images = load(data)
    before = pretrained(network, data)
    splits = {"validation": (images.validation, images.validation_labels), "test": (images.test, images.test_labels)}
    return {f"lost_{name}": round(accuracy(before, *at) - accuracy(model, *at), 3) for name, at in splits.items()}


def costs(statistics: Any) -> dict[str, float]:
    """What a compressed network uses of the original."""
    return {"bops_ratio": statistics.bops_ratio, "macs_ratio": statistics.macs_ratio}
