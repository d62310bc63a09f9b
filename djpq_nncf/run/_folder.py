# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: what was asked, how far it came, and everything it wrote."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from djpq_nncf.errors import DataError, RunError
from djpq_nncf.report import RunReport
from djpq_nncf.run._settings import RunSettings

FORMAT = 1
CONTINUE = "Run the same `djpq-nncf compress` again; it continues."
_STATUSES = ("training", "trained", "finished")
_PACKAGES = ("djpq-nncf", "torch", "torchvision", "nncf", "openvino", "onnxruntime", "onnx")


class RunFolder:
    """Paths, settings, status and log of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock")

    @property
    def checkpoint(self) -> Path:
        """State after the last complete epoch."""
        return self.path / "checkpoint.safetensors"

    @property
    def log_file(self) -> Path:
        """A JSON object in each line; see :class:`TrainingMonitor`."""
        return self.path / "log.jsonl"

    @property
    def report_data(self) -> Path:
        """What the report shows besides the log."""
        return self.path / "report.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def exported(self) -> tuple[Path, ...]:
        """The exported files that exist."""
        return tuple(path for suffix in (".xml", ".onnx") if (path := self.path / f"compressed{suffix}").is_file())

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self._manifest.is_file()

    @property
    def status(self) -> str:
        """``"training"``, ``"trained"`` or ``"finished"``; without its report a run is only trained."""
        status = str(self._read()["status"])
        if status == "finished":
            try:
                self.read_report()
            except RunError:
                return "trained"
        return status

    @property
    def has_progress(self) -> bool:
        """Whether there is something to continue; a run that completed no epoch is begun anew."""
        return self.exists and (self.checkpoint.is_file() or self.status == "finished")

    @property
    def settings(self) -> RunSettings:
        """What the run was begun with.

        Raises:
            RunError: there is no run, it is damaged, or another version wrote it.
        """
        try:
            return RunSettings.from_dict(self._read()["settings"])
        except (KeyError, TypeError, DataError) as error:
            raise self._damaged(f"its settings: {type(error).__name__}, {error}") from error

    @property
    def is_written(self) -> bool:
        """Whether some process writes here now.

        Raises:
            RunError: that cannot be found out, as this one may not write here.
        """
        if not self.path.is_dir():
            return False
        probe = FileLock(self.path / ".lock")
        try:
            probe.acquire(timeout=0)
        except Timeout:
            return True
        except OSError as error:
            raise self._cannot_write(self.path, error) from error
        probe.release()
        return False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Let no other process write here meanwhile.

        Raises:
            RunError: another process does, or the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"Another process writes to {self.path}. Wait until it ends, or choose another folder with --out."
            ) from None
        except OSError as error:
            raise RunError(
                f"Cannot write to the folder {self.path}: {error.strerror or error}. Free space, or choose another "
                "one with --out."
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def check(self, settings: RunSettings) -> None:
        """Can a run with these settings begin or continue here? Changes nothing.

        Raises:
            RunError: the folder holds another run that completed an epoch, a damaged one, or something else.
        """
        if self.has_progress:
            if changed := self.settings.changes(settings):
                raise RunError(
                    f"{self.path} holds a run with other settings: {'; '.join(changed)}. Choose another folder with "
                    "--out, or remove this one."
                )
        elif not self.exists and (foreign := sorted(e.name for e in self.path.iterdir() if e.name[0] != ".")):
            raise RunError(
                f"{self.path} holds no run but other files ({', '.join(foreign[:3])}). Choose an empty folder with "
                "--out."
            )

    def begin(self, settings: RunSettings) -> None:
        """Write down what a run shall be, where there is none to continue.

        Raises:
            RunError: the folder cannot be written to.
        """
        if self.has_progress:
            return
        # first what makes it the folder of a run: an interruption behind it is no obstacle
        self._write_manifest(
            {
                "format": FORMAT,
                "status": "training",
                "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "seed": settings.seed,
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in _PACKAGES},
                },
                "settings": settings.to_dict(),
            }
        )
        self.write("config.json", settings.config)
        for left in (self.log_file, self.report_data, self.report):  # of a run whose checkpoint was removed
            left.unlink(missing_ok=True)

    def set_status(self, status: str) -> None:
        self._write_manifest({**self._read(), "status": status})

    def write(self, name: str, content: Mapping[str, Any] | str) -> Path:
        """Write JSON or text, completely or not at all.

        Raises:
            RunError: the disk is full, or the folder is read-only.
        """
        path = self.path / name
        partial = path.with_name(f".{name}.partial")
        try:
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise self._cannot_write(path, error) from error
        return path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line to the log.

        Raises:
            RunError: the disk is full, or the folder is read-only.
        """
        try:
            with self.log_file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise self._cannot_write(self.log_file, error) from error

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of the log; a last line that was cut off is left out.

        Raises:
            RunError: another line is damaged.
        """
        if not self.log_file.is_file():
            return []
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                if line:
                    rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                if number < len(lines):
                    raise RunError(
                        f"{self.log_file}, line {number} is damaged ({error}). Remove that line; the run itself does "
                        "not need it."
                    ) from error
        return rows

    def cut_log(self, step: int) -> None:
        """Forget what was logged after ``step``, which a resumed run does again."""
        rows = [row for row in self.read_log() if row.get("step", 0) <= step]
        self.write(self.log_file.name, "".join(json.dumps(row) + "\n" for row in rows))

    def read_report(self) -> RunReport:
        """What the report shows besides the log.

        Raises:
            RunError: it was not written yet, or is damaged.
        """
        try:
            return RunReport.from_dict(json.loads(self.report_data.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RunError(f"The run in {self.path} is not finished. {CONTINUE}") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.report_data} cannot be used: {error} {CONTINUE}") from error

    @property
    def _manifest(self) -> Path:
        return self.path / "run.json"

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        self.write(self._manifest.name, content)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no run: it has no run.json. `djpq-nncf compress` makes one.") from None
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if not isinstance(content, dict):
            raise self._damaged(f"it holds a {type(content).__name__}")
        if (found := content.get("format")) != FORMAT:
            raise RunError(
                f"{self.path} was written by another version of djpq-nncf (format {found!r}, this one reads {FORMAT}). "
                "Continue it with that version, or begin anew in another folder; exported files can be used as they "
                "are."
            )
        if content.get("status") not in _STATUSES or "settings" not in content:
            raise self._damaged("it lacks settings or status")
        return content

    def _damaged(self, what: str) -> RunError:
        return RunError(
            f"{self._manifest} is damaged ({what}). Begin the run anew in another folder; exported files can be used "
            "as they are."
        )

    def _cannot_write(self, path: Path, error: OSError) -> RunError:
        return RunError(
            f"Cannot write {path}: {error.strerror or error}. Free some space; the same command continues after the "
            "last complete epoch."
        )
