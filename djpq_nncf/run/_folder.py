# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: what was asked, how far it came, and everything it wrote."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import RunError

FORMAT = 1
_PACKAGES = ("djpq-nncf", "torch", "nncf", "openvino", "onnxruntime", "onnx")


@dataclass(frozen=True)
class RunSettings:
    """What decides the result of a run; it is continued only with the same.

    Attributes:
        config: the configuration as it was written.
        model: ``package.module:factory`` or ``torchvision:NAME``.
        data: an image folder, or ``package.module:function`` that returns batches to train and to validate with.
        weights: file with the parameters of the trained network; None where the factory brings them.
        train: ``package.module:function`` that trains; None for the classifier's loop.
        lr: learning rate of the weights.
        batch_size: images of a step, of an image folder.
        image_size: height and width in pixels, of an image folder.
        mean, deviation: of the channels, of an image folder.
        augment: whether training images of a folder are cropped and flipped at random.
    """

    config: dict[str, Any]
    model: str
    data: str
    weights: str | None = None
    train: str | None = None
    lr: float = 1e-3
    batch_size: int = 64
    image_size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)
    augment: bool = True

    @property
    def nncf_config(self) -> NNCFConfig:
        return NNCFConfig.from_dict(self.config)

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return self.nncf_config.epochs

    @property
    def seed(self) -> int:
        return self.nncf_config.seed


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
        """``"training"``, ``"trained"`` or ``"finished"``."""
        return str(self._read()["status"])

    @property
    def settings(self) -> RunSettings:
        """What the run was begun with.

        Raises:
            RunError: there is no run, it is damaged, or another version wrote it.
        """
        stored = dict(self._read()["settings"])
        for name in ("mean", "deviation"):
            stored[name] = tuple(stored[name])
        return RunSettings(**stored)

    @property
    def is_written(self) -> bool:
        """Whether some process writes here now."""
        if not self.path.is_dir():
            return False
        probe = FileLock(self.path / ".lock")
        try:
            probe.acquire(timeout=0)
        except (Timeout, OSError):
            return True
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

    def begin(self, settings: RunSettings) -> None:
        """Make the folder of a new run, or check that a run which is there is the same.

        Raises:
            RunError: the folder holds another run or something else, or cannot be written to.
        """
        if self.exists:
            begun = self.settings
            changed = [
                f"{field.name} was {getattr(begun, field.name)!r} and is {getattr(settings, field.name)!r}"
                for field in fields(settings)
                if field.name != "config" and getattr(begun, field.name) != getattr(settings, field.name)
            ]
            changed += _changes(begun.nncf_config.resolved(), settings.nncf_config.resolved(), "$")
            if changed:
                raise RunError(
                    f"{self.path} holds a run with other settings: {'; '.join(changed)}. Choose another folder with "
                    "--out, or remove this one."
                )
            return
        if foreign := sorted(entry.name for entry in self.path.iterdir() if entry.name != ".lock"):
            raise RunError(
                f"{self.path} holds no run but other files ({', '.join(foreign[:3])}). Choose an empty folder with "
                "--out."
            )
        self.write("config.json", settings.config)
        self._write_manifest(
            {
                "format": FORMAT,
                "status": "training",
                "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": {name: version(name) for name in _PACKAGES},
                "settings": asdict(settings),
            }
        )

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
                    rows.append(json.loads(line))
            except ValueError as error:
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

    @property
    def _manifest(self) -> Path:
        return self.path / "run.json"

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        self.write(self._manifest.name, content)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
            found = content.get("format")
            if found == FORMAT and {"status", "settings"} <= set(content):
                return dict(content)
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no run: it has no run.json. `djpq-nncf compress` makes one.") from None
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"{self._manifest} is damaged ({error}). Begin the run anew in another folder.") from error
        raise RunError(
            f"{self.path} was written by another version of djpq-nncf (format {found!r}, this one reads {FORMAT}). "
            "Continue it with that version, or begin anew in another folder; exported files can be used as they are."
        )

    def _cannot_write(self, path: Path, error: OSError) -> RunError:
        return RunError(
            f"Cannot write {path}: {error.strerror or error}. Free some space; the same command continues after the "
            "last complete epoch."
        )


def _changes(old: Any, new: Any, path: str) -> list[str]:
    """Where two JSON documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change for key in sorted({*old, *new}) for change in _changes(old.get(key), new.get(key), f"{path}.{key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for i, (a, b) in pairs for change in _changes(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path} was {old!r} and is {new!r}"]
