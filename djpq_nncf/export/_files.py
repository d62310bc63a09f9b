# SPDX-License-Identifier: Apache-2.0
"""Writes a set of files completely or not at all, and tells whether they are there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from djpq_nncf.errors import ExportError


@contextmanager
def complete_files(path: Path, companions: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields a temporary path to write to; afterwards moves the file, with its companions, to ``path``.

    ``companions`` are suffixes of files which are written beside it (``.bin`` for an ``.xml``). On failure
    nothing new stays behind, what stood at ``path`` before is untouched, and an ``ExportError`` tells why.
    """
    temporary: Path | None = None
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist")
        folder = tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent)
        temporary = Path(folder) / path.name
        yield temporary
        # the file that names the others goes last: whoever finds it finds them all
        for suffix in (*companions, path.suffix):
            written = temporary.with_suffix(suffix)
            with written.open("rb+") as stream:
                os.fsync(stream.fileno())
        for suffix in (*companions, path.suffix):
            temporary.with_suffix(suffix).replace(path.with_suffix(suffix))
    except (OSError, RuntimeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(
            f"Cannot write {path}: {error}. Free some space or choose another folder; nothing was changed there."
        ) from error
    finally:
        if temporary is not None:
            _remove(temporary)


def check_exported(path: Path, verb: str) -> None:
    """Is ``path`` an IR or an ONNX file that exists?

    Raises:
        ExportError: it is not; ``verb`` says what it cannot be done with.
    """
    if path.suffix not in (".xml", ".onnx"):
        raise ExportError(f"Cannot {verb} {path}: expected a .xml (OpenVINO IR) or an .onnx file.")
    for needed in (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,):
        if not needed.is_file():
            raise ExportError(f"Cannot {verb} {path}: there is no file {needed}. Export the model first.")


def file_size(path: Path) -> int:
    """Bytes on disk; an IR is two files."""
    files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    return sum(file.stat().st_size for file in files)


def _remove(temporary: Path) -> None:
    for leftover in temporary.parent.iterdir():
        leftover.unlink()
    temporary.parent.rmdir()
