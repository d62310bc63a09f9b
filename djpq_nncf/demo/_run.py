# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf demo``: the digits, from training to the table."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from djpq_nncf.config import NNCFConfig
from djpq_nncf.demo._compress import Outcome, compress_and_compare
from djpq_nncf.demo._data import Batches
from djpq_nncf.demo._digits import DigitsResNet, load_digits_data
from djpq_nncf.demo._training import accuracy, train
from djpq_nncf.errors import ConfigError

_BATCH_SIZE = 32


def demo_config() -> Path:
    """The demo's config: inside the installed package, or among the examples of the repository."""
    name = "digits_djpq.json"
    package = Path(__file__).resolve().parents[1]
    for path in (package / "demo" / name, package.parent / "examples" / "configs" / name):
        if path.is_file():
            return path
    raise ConfigError(f'The demo\'s config is missing from "{package}"; install djpq-nncf again.')


def run_demo(
    out: Path,
    *,
    config: Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train a residual network on the digits, compress it, and measure what was exported.

    Args:
        out: folder for the files.
        config: JSON file; None for the demo's own, :func:`demo_config`.
        epochs: of each of the two trainings, at least 2; by default what the config says.
        seed: of the initial weights and the order of the samples; by default what the config says.
        say: gets a line at each stage.

    Raises:
        ConfigError: the config, ``epochs`` or ``seed`` is not allowed.
        ExportError: ``out`` cannot be written to.
    """
    settings = _settings(config or demo_config(), epochs, seed)
    data = load_digits_data()
    torch.manual_seed(settings.seed)
    model = DigitsResNet()
    batches = Batches(data.train_images, data.train_labels, _BATCH_SIZE, seed=settings.seed)
    with _one_thread():
        train(model, batches, epochs=settings.epochs)
        say(f"FP32 accuracy in PyTorch: {accuracy(model, data.test_images, data.test_labels):.2%}")
        return compress_and_compare(model, settings, data, out, batch_size=_BATCH_SIZE, say=say)


def _settings(path: Path, epochs: int | None, seed: int | None) -> NNCFConfig:
    written = dict(NNCFConfig.from_json(path))
    if seed is not None:
        written["seed"] = seed
    if epochs is not None:
        compression = copy.deepcopy(written["compression"])
        for entry in compression if isinstance(compression, list) else [compression]:
            if entry["algorithm"] == "djpq":
                entry["schedule"] = {"epochs": epochs}
        written["compression"] = compression
    return NNCFConfig.from_dict(written)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For tensors this small more threads gain little, and the sums would depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
