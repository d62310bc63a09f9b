# SPDX-License-Identifier: Apache-2.0
"""From a trained network and a config to files before and after, verified and compared."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from djpq_nncf.algorithms import create_compressed_model
from djpq_nncf.capture import capture
from djpq_nncf.config import NNCFConfig
from djpq_nncf.demo._comparison import Comparison, compare_files
from djpq_nncf.demo._data import Batches, ImageData
from djpq_nncf.demo._training import accuracy, fine_tune
from djpq_nncf.errors import ExportError
from djpq_nncf.export import ExportVerification, export_model, verify_export


@dataclass(frozen=True)
class Outcome:
    """What :func:`compress_and_compare` hands back: figures, the check of each file, and the layers as text."""

    comparison: Comparison
    verifications: tuple[ExportVerification, ...]
    layers: str


def compress_and_compare(
    model: nn.Module,
    config: NNCFConfig,
    data: ImageData,
    out: Path,
    *,
    lr: float = 1e-3,
    batch_size: int = 64,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Compress a trained image classifier, write it as OpenVINO IR and ONNX, run both, and compare with FP32.

    Writes ``fp32.xml/.bin/.onnx``, ``compressed.xml/.bin/.onnx``, ``report.html``, ``layers.txt`` and ``results.json``
    into ``out``.

    Args:
        model: the trained network.
        config: what to do; its ``schedule.epochs`` is the length of the fine-tuning.
        data: what to fine-tune and to test with.
        out: folder to write to; made where it is missing.
        lr: learning rate of the weights.
        batch_size: of the fine-tuning.
        say: gets a line at each stage.

    Raises:
        ExportError: ``out`` cannot be written to.
    """
    _make_folder(out)
    batches = Batches(data.train_images, data.train_labels, batch_size, seed=config.seed)
    ctrl, compressed = create_compressed_model(model, config, init_data=batches)
    test = data.test_images, data.test_labels
    history: list[dict[str, Any]] = [
        {"event": "original", "epoch": 0, "step": 0, "accuracy": accuracy(model.eval(), *test)}
    ]
    history += fine_tune(
        ctrl,
        compressed,
        batches,
        epochs=config.epochs,
        lr=lr,
        evaluate=lambda: accuracy(compressed, *test),
    )
    stripped = ctrl.strip()
    say(f"Compressed accuracy in PyTorch: {accuracy(stripped, *test):.2%}")

    original = capture(model.eval(), (data.test_images[:2],))
    suffixes = (".xml", ".onnx")
    before = [out / f"fp32{suffix}" for suffix in suffixes]
    after = [out / f"compressed{suffix}" for suffix in suffixes]
    for path in before:
        export_model(original, path)
    for path in after:
        ctrl.export_model(path)
    samples = list(data.test_images.split(256))
    verifications = tuple(verify_export(path, stripped, samples) for path in after)
    for verification in verifications:
        say(verification.to_str())

    comparison = compare_files(
        before,
        after,
        data.test_images,
        data.test_labels,
        parameters=(_parameters(original), _parameters(stripped)),
    )
    ctrl.report(out / "report.html", history=history, verifications=verifications, title=f"{type(model).__name__}")
    layers = ctrl.statistics().to_str()
    (out / "layers.txt").write_text(layers + "\n", encoding="utf-8")
    (out / "results.json").write_text(json.dumps(comparison.to_dict(), indent=2) + "\n", encoding="utf-8")
    return Outcome(comparison, verifications, layers)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"Cannot make the folder {out}: {error.strerror}. Choose another one.") from error


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
