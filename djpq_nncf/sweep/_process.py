# SPDX-License-Identifier: Apache-2.0
"""Processes that run ``djpq-nncf compress``, and end with the sweep."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from djpq_nncf.sweep._folder import SweepFolder

COMPRESS = (sys.executable, "-m", "djpq_nncf", "compress")
_LINES = 50
"""Of the output that are remembered, to find the reason in."""


class CompressProcesses:
    """Runs trials in processes of their own, from several threads.

    Args:
        folder: of the sweep.
        arguments: for ``compress`` besides config and folder.
        jobs: processes at a time; they share the cores.
    """

    def __init__(self, folder: SweepFolder, arguments: Sequence[str], jobs: int) -> None:
        self._folder = folder
        self._arguments = arguments
        self._environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, name: str) -> str | None:
        """What went wrong, or None."""
        output = self._folder.output(name)
        try:
            process = self._start(name)
        except OSError as error:
            return f"{error}; the same command continues it"
        try:
            last = _copy(process, output)
        except OSError as error:
            process.terminate()
            return f"{error}; the same command continues it"
        finally:
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code == 0:
            return None
        if code < 0:
            return f"it was killed by signal {-code}; the same command continues it"
        whole = f"; all of it in {output}" if output.is_file() else ""
        return f"{_reason(last)} (exit code {code}{whole})"

    def stop(self) -> None:
        """End all that run; no other begins."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _start(self, name: str) -> "subprocess.Popen[str]":
        command = [*COMPRESS, str(self._folder.config(name)), "--out", str(self._folder.run(name).path)]
        with self._lock:
            if self._stopped:
                raise InterruptedError("it was not begun, as the sweep was stopped")
            process = subprocess.Popen(
                [*command, *self._arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                encoding="utf-8",
                errors="replace",
            )
            self._running.add(process)
        return process


def _reason(lines: Sequence[str]) -> str:
    """Of what was printed the error of our own command, or else the last line in words."""
    words = [line.strip(" │") for line in lines if any(map(str.isalpha, line))]
    return next((line for line in reversed(words) if line.startswith("Error: ")), words[-1] if words else "no reason")


def _copy(process: "subprocess.Popen[str]", path: Path) -> Sequence[str]:
    """Copy what a process prints into a file, and return the end of it, also where the disk is full."""
    last: deque[str] = deque(maxlen=_LINES)
    assert process.stdout is not None
    with contextlib.ExitStack() as stack:
        stack.enter_context(process.stdout)
        file = None
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("wb", buffering=0))
        for line in process.stdout:
            last.append(line.rstrip("\n"))
            if file is not None:
                with contextlib.suppress(OSError):
                    file.write(line.encode())
    return last
