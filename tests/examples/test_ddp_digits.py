# SPDX-License-Identifier: Apache-2.0
"""examples/ddp_digits.py: two processes agree bit for bit, and with one process that sees the same batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.examples.running import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "ddp_digits.py"
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def train(folder: Path, *launcher: str) -> Path:
    result = subprocess.run(
        [sys.executable, *launcher, EXAMPLE, "--double", "--epochs", "3", "--width", "8", "--out", folder],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert ("2 processes agree bit for bit." in result.stdout) == bool(launcher)
    return folder / "checkpoint.safetensors"


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    one, two = train(tmp_path / "one"), train(tmp_path / "two", *TWO)
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    closed = [name for name, value in first.items() if name.endswith(".open") and not value.all()]
    assert closed, "nothing was pruned, so nothing about the choice of channels was compared"
