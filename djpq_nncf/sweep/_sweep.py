# SPDX-License-Identifier: Apache-2.0
"""Runs the trials of a sweep in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from djpq_nncf.algorithms._progress import track
from djpq_nncf.errors import RunError
from djpq_nncf.run import RunFolder
from djpq_nncf.sweep._grid import Trial
from djpq_nncf.sweep._queue import TrialQueue


def run_sweep(
    folder: Path,
    trials: Sequence[Trial],
    queue: TrialQueue,
    arguments: Sequence[str],
    *,
    jobs: int,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Compress once for each trial the queue hands out; runs that are finished stay, others continue.

    Args:
        folder: of the sweep: ``configs/NAME.json``, ``runs/NAME`` and ``output/NAME.txt``, what the run printed.
        trials: all of them.
        queue: hands them out.
        arguments: for ``djpq-nncf compress`` besides config and folder.
        jobs: processes at a time; they share the cores.
        say: gets a line for each run that ends.

    Returns:
        The last line that each failed run printed, by name.

    Raises:
        RunError: the folder holds another sweep, or cannot be written to.
    """
    try:
        _prepare(folder, trials, arguments)
    except OSError as error:
        raise RunError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another one with --out."
        ) from error
    failures: dict[str, str] = {}
    with track("sweep", len(trials)) as advance:

        def work(trial: Trial) -> bool:
            message = _run(folder, trial, arguments, jobs)
            if message is not None:
                failures[trial.name] = message
            say(f"{trial.name}: {'finished' if message is None else f'failed, {message}'}")
            advance(1)
            return message is None

        queue.run(work, jobs)
    return failures


def _prepare(folder: Path, trials: Sequence[Trial], arguments: Sequence[str]) -> None:
    for part in ("configs", "runs", "output"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    manifest = folder / "sweep.json"
    content = {"compress": list(arguments), "trials": {trial.name: trial.config for trial in trials}}
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8"))["compress"] != content["compress"]:
        raise RunError(
            f"{folder} holds a sweep with other arguments for `compress`. Give the same, or choose another folder with "
            "--out."
        )
    _write(manifest, content)
    for trial in trials:
        _write(folder / "configs" / f"{trial.name}.json", trial.config)


def _write(path: Path, content: object) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _run(folder: Path, trial: Trial, arguments: Sequence[str], jobs: int) -> str | None:
    """What went wrong, or None."""
    path = folder / "runs" / trial.name
    if (run := RunFolder(path)).exists and run.status == "finished":
        return None
    threads = max(1, (os.cpu_count() or 1) // jobs)
    output = folder / "output" / f"{trial.name}.txt"
    command = [sys.executable, "-m", "djpq_nncf", "compress", str(folder / "configs" / f"{trial.name}.json")]
    with output.open("w", encoding="utf-8") as stream:
        ended = subprocess.run(
            [*command, "--out", str(path), *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            check=False,
        )
    if ended.returncode == 0:
        return None
    if ended.returncode < 0:
        return f"it was killed by signal {-ended.returncode}; the same command continues it"
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'without a word'} (all of it in {output})"
