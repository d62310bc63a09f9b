# SPDX-License-Identifier: Apache-2.0
"""examples/ddp_digits.py: two processes agree bit for bit, and with one process that sees the same batches."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.examples.running import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "ddp_digits.py"
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# Instructions that every CPU has, so that rounding errors fall in the same places.
SAME_ON_ALL_CPUS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}


def train(
    folder: Path, *options: str, environment: dict[str, str], launcher: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """The checkpoint, and the rows of the table of layers."""
    given = {"PYTHONPATH": str(REPOSITORY), "PATH": "", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, *launcher, EXAMPLE, *options, "--width", "8", "--out", folder],
        env=given | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert ("2 processes agree bit for bit." in result.stdout) == bool(launcher)
    layers = [line for line in result.stdout.splitlines() if re.search(" (conv2d|linear) ", line)]
    assert len(layers) == 4
    return load_file(folder / "checkpoint.safetensors"), layers


def difference(one: Tensor, other: Tensor) -> float:
    """The largest, as a share of the largest number."""
    one, other = one.double(), other.double()
    return float((one - other).abs().amax() / one.abs().amax().clamp(min=1e-12)) if one.numel() else 0.0


# Sums are rounded in another order. The loss's derivative towards a bit-width is a sum of rounding residuals, a
# sawtooth with as many teeth as the grid has levels. Where that moves bits, because the strength is low, and in steps
# as large as so few steps ask for, each makes about three times as much of a difference, in float64 too; bits that are
# held, or that the strength moves, do not. So without noise they learn as in a longer training here. Where bits do move
# so, and in float32, where single values round to another level, how much it becomes depends on the CPU.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "names", "environment"),
    [
        pytest.param(
            ("--double", "--epochs", "2", "--noise", "0.3"), "", SAME_ON_ALL_CPUS, id="float64, beyond the freeze"
        ),
        pytest.param(
            ("--double", "--epochs", "3", "--lr-multiplier", "3", "--noise", "0.3"), "", {}, id="float64, longer"
        ),
        pytest.param(
            ("--epochs", "1", "--steps", "10", "--noise", "0.3"),
            "model.",
            SAME_ON_ALL_CPUS,
            id="float32, after 10 steps",
        ),
        pytest.param(("--double", "--epochs", "3", "--lr-multiplier", "3"), "", {}, id="no noise, float64"),
        pytest.param(
            ("--epochs", "1", "--steps", "10", "--lr-multiplier", "3"),
            "model.",
            SAME_ON_ALL_CPUS,
            id="no noise, float32",
        ),
    ],
)
def test_two_processes_are_one(
    tmp_path: Path, options: tuple[str, ...], names: str, environment: dict[str, str]
) -> None:
    first, layers = train(tmp_path / "one", *options, environment=environment)
    second, again = train(tmp_path / "two", *options, environment=environment, launcher=TWO)
    assert again == layers
    assert first.keys() == second.keys()
    differences = {name: difference(first[name], second[name]) for name in first if name.startswith(names)}
    assert max(differences.values()) <= (1e-8 if "--double" in options else 1e-5), differences
    closed = [name for name, value in first.items() if name.endswith(".open") and not value.all()]
    assert closed or "--double" not in options, "nothing was pruned, so no choice of channels was compared"
