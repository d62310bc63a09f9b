# SPDX-License-Identifier: Apache-2.0
"""examples/imagenet.py on a handful of generated images, in one process and in two."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from tests.examples.running import REPOSITORY, run_example

EXAMPLE = REPOSITORY / "examples" / "imagenet.py"
SMALL = ("--image-size", "32", "--batch-size", "4", "--workers", "0", "--steps", "2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cats", "dogs"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(8 if part == "train" else 3):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_weights_autocast_and_resumption(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(models.resnet18(num_classes=2).state_dict(), weights)
    out = tmp_path / "out"
    options = (data, *SMALL, "--weights", weights, "--autocast", "--out", out)
    run_example(monkeypatch, "imagenet", *options, "--epochs", "2")
    assert "Epoch 2 of 2, fully compressed" in capsys.readouterr().out
    files = {"model.xml", "model.bin", "model.onnx", "checkpoint.safetensors"}
    assert {file.name for file in out.iterdir()} == files
    run_example(monkeypatch, "imagenet", *options, "--epochs", "3")
    printed = capsys.readouterr().out
    assert "after 2 epochs" in printed
    assert "Epoch 3 of 3" in printed


@pytest.mark.slow
def test_two_processes(data: Path, tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    result = subprocess.run(
        [*launcher, EXAMPLE, data, *SMALL, "--model", "mobilenet_v2", "--epochs", "2", "--out", "out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Epoch 2 of 2, fully compressed" in result.stdout
    assert (tmp_path / "out" / "model.xml").is_file()


@pytest.mark.parametrize("problem", ["train/ and val/", "weights"])
def test_unusable_input_is_one_error(problem: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(models.resnet18(num_classes=5).state_dict(), weights)
    folder = data if problem == "weights" else tmp_path
    with pytest.raises(SystemExit, match=f"Error: .*{problem}"):
        run_example(monkeypatch, "imagenet", folder, *SMALL, "--weights", weights)
