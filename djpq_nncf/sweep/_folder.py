# SPDX-License-Identifier: Apache-2.0
"""The folder of a sweep: what was asked, its runs, and locks that say which process runs which trial."""

import contextlib
import json
import os
import shlex
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from djpq_nncf.errors import RunError
from djpq_nncf.run import RunFolder
from djpq_nncf.sweep._grid import Trial


class SweepFolder:
    """``sweep.json``, ``configs/NAME.json``, ``runs/NAME`` and ``output/NAME.txt``, what a run printed.

    Several processes may work in it, of one machine or of several that share it. What is finished is known from the
    run folders alone.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def id(self) -> str:
        """Tells this sweep from others of the same name."""
        return str(self._manifest()["id"])

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / "runs" / name)

    def config(self, name: str) -> Path:
        return self.path / "configs" / f"{name}.json"

    def output(self, name: str) -> Path:
        return self.path / "output" / f"{name}.txt"

    def is_finished(self, name: str) -> bool:
        """Whether nothing is left to do for a trial.

        Raises:
            RunError: its run folder is damaged, or of another version.
        """
        return (run := self.run(name)).exists and run.status == "finished"

    def begin(self, trials: Sequence[Trial], arguments: Sequence[str]) -> None:
        """Write down what is asked.

        Trials may be others than before, arguments only while no run has come to anything.

        Raises:
            RunError: the folder holds another sweep or a run with another config, or cannot be written to.
        """
        with self.locked():
            for part in ("configs", "runs", "output"):
                (self.path / part).mkdir(exist_ok=True)
            begun = self._manifest() if self._file.is_file() else {"id": uuid.uuid4().hex, "compress": None}
            if begun["compress"] not in (None, list(arguments)):
                self._check_nothing_is_done(begun["compress"])
            for trial in trials:
                self._check_config(trial)
            content = {
                "id": begun["id"],
                "compress": list(arguments),
                "trials": {trial.name: trial.config for trial in trials},
            }
            for trial in trials:
                write_whole(self.config(trial.name), json.dumps(trial.config, indent=2) + "\n")
            write_whole(self._file, json.dumps(content, indent=2) + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process begin the sweep or take a trial meanwhile.

        Raises:
            RunError: the folder cannot be written to.
        """
        try:
            (self.path / ".locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / ".lock"):
                yield
        except OSError as error:
            raise self._cannot_write(error) from error

    def claim(self, name: str) -> FileLock | None:
        """Keep other processes from a trial until the lock is released or this process dies; None: another one has it.

        Raises:
            RunError: the folder cannot be written to.
        """
        claim = FileLock(self.path / ".locks" / name)
        try:
            claim.acquire(timeout=0)
        except Timeout:
            return None
        except OSError as error:
            raise self._cannot_write(error) from error
        # a run goes on for a while when the sweep that began it was killed
        if self.run(name).is_written:
            claim.release()
            return None
        return claim

    @property
    def _file(self) -> Path:
        return self.path / "sweep.json"

    def _manifest(self) -> dict[str, Any]:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            return {"id": content["id"], "compress": content["compress"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self._file} is damaged ({type(error).__name__}: {error}). Remove it and run the same command; "
                "the runs stay."
            ) from error

    def _cannot_write(self, error: OSError) -> RunError:
        return RunError(
            f"Cannot write to {self.path}: {error.strerror or error}. Free some space and run the same command, or "
            "choose another folder with --out."
        )

    def _check_config(self, trial: Trial) -> None:
        """What is done of a trial was done with its config; names hold only what the sweep varies."""
        run = self.run(trial.name)
        try:
            changed = run.settings.config_changes(trial.config) if run.has_progress else []
        except RunError:
            return  # whoever takes the trial says what is wrong
        if changed:
            raise RunError(
                f"{run.path} was made with another config: {'; '.join(changed)}. Choose another folder with --out, or "
                "remove that run."
            )

    def _check_nothing_is_done(self, arguments: Any) -> None:
        """After wrong arguments no run has come to anything, and the right ones may take their place."""
        for path in sorted((self.path / "runs").iterdir()):
            if (run := RunFolder(path)).is_written or run.has_progress:
                raise RunError(
                    f"{self.path} holds a sweep whose runs have other arguments: {shlex.join(map(str, arguments))}. "
                    "Give the same behind `--`, or choose another folder with --out."
                )


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all, whoever else writes it too.

    Raises:
        OSError: the disk is full, or the folder is read-only.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
