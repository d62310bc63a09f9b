# SPDX-License-Identifier: Apache-2.0
"""A disk that is full after a few kilobytes."""

import contextlib
import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_PAGE = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mounts one on ``path``; skips the test where that is not permitted.

    Args:
        path: of a folder, which is made.
        size: such as "256k".
    """
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield path
    finally:
        gc.collect()  # an error that was caught may still hold a file in memory
        subprocess.run(["umount", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Writes a file that takes what is free; without it there is room again."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(_PAGE))
    return ballast
