# SPDX-License-Identifier: Apache-2.0
"""examples/fashion_mnist.py on generated images."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from tests.examples.running import run_example

CONFIG = {
    "compression": {
        "algorithm": "djpq",
        "target": {"bops_ratio": 0.03},
        "schedule": {"epochs": 2},
        "initializer": {"range": {"num_init_samples": 32}},
    }
}


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images whose brightest row tells the class."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 256), ("t10k", 64)):
        labels = np.arange(count) % 10
        images = random.integers(0, 100, (count, 28, 28))
        images[np.arange(count), 2 * labels + 4] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.mark.slow
def test_whole_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    out = tmp_path / "out"
    options = ("--config", config, "--out", out, "--epochs", "1", "--batch-size", "32")
    run_example(monkeypatch, "fashion_mnist", data, *options)
    assert "BOPs per image" in capsys.readouterr().out
    figures = json.loads((out / "results.json").read_text())
    assert figures["after"][0]["bops"] == pytest.approx(0.03 * figures["before"][0]["bops"], rel=0.02)
    assert (out / "compressed.onnx").is_file()


def test_missing_files_say_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"Error: .*dataset-fashion-mnist"):
        run_example(monkeypatch, "fashion_mnist", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "other format"])
def test_damaged_file(damage: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = data / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "truncated" else gzip.compress(b"an image"))
    with pytest.raises(SystemExit, match=r"Error: .*Install the data set again"):
        run_example(monkeypatch, "fashion_mnist", data)
