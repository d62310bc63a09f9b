# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf sweep`` in processes of their own, which begin at once: what they import is there already."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

from djpq_nncf.cli import app

_FORK = multiprocessing.get_context("fork")
_SECONDS = 120


class Worker:
    """A process that sweeps.

    Args:
        arguments: of ``djpq-nncf``.
        output: gets what it prints.
        barrier: begins when all have reached it.
    """

    def __init__(self, arguments: list[str], output: Path, barrier: Barrier | None = None):
        self._output = output
        self._process = _FORK.Process(target=_sweep, args=(arguments, output, barrier))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def text(self) -> str:
        return self._output.read_text()

    def wait(self) -> int:
        self._process.join(_SECONDS)
        assert self._process.exitcode is not None, self.text
        return self._process.exitcode

    def children(self) -> list[int]:
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return found

    def kill(self, *, with_runs: bool) -> None:
        runs = self.children()
        os.kill(self.pid, signal.SIGKILL)
        for pid in runs if with_runs else []:
            os.kill(pid, signal.SIGKILL)
        self.wait()


def start_together(commands: list[list[str]], folder: Path) -> list[Worker]:
    barrier = _FORK.Barrier(len(commands))
    return [Worker(arguments, folder / f"worker{number}.txt", barrier) for number, arguments in enumerate(commands)]


def until(condition: Callable[[], bool]) -> None:
    """Wait for something another process does."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _sweep(arguments: list[str], output: Path, barrier: Barrier | None) -> None:
    with output.open("w") as stream:
        sys.stdout = sys.stderr = stream
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if barrier is not None:
            barrier.wait(_SECONDS)
        app(arguments)
