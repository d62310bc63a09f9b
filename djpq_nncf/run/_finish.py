# SPDX-License-Identifier: Apache-2.0
"""What follows the training of a run: export, the check of the files, and the report."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from djpq_nncf.algorithms._data import find_example, to_device
from djpq_nncf.capture import capture
from djpq_nncf.errors import RunError
from djpq_nncf.export import ExportVerification, export_model, verify_export
from djpq_nncf.report import write_report
from djpq_nncf.run._build import rebuild_run
from djpq_nncf.run._folder import RunFolder
from djpq_nncf.run._run import CompressionRun

SUFFIXES = (".xml", ".onnx")
_VERIFIED_BATCHES = 4


def finish_run(run: CompressionRun, *, say: Callable[[str], None]) -> None:
    """Write FP32 and compressed files, check those, and write the report."""
    _cpu(run)
    for path in _write_files(run, SUFFIXES):
        say(f"Wrote {path}")
    _write_original(run)
    _check_files(run, say)


def export_run(
    path: str | os.PathLike[str],
    *,
    suffixes: Sequence[str] = SUFFIXES,
    opset: int | None = None,
    packed_weights: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[Path, ...]:
    """Write the network of a run again, from its checkpoint: ``compressed.xml`` and ``compressed.onnx``.

    The files are verified, and the report is brought up to date.

    Args:
        path: folder of the run.
        suffixes: which of ``".xml"`` and ``".onnx"``.
        opset: of ONNX; see `djpq_nncf.export.export_model`.
        packed_weights: pack weights of few bits.
        say: gets a line for each file.

    Raises:
        RunError: the folder holds no run, or one that is not trained to the end.
        ExportError: a file cannot be written.
    """
    with _writing(path) as run:
        paths = []
        for written in _write_files(run, suffixes, opset=opset, packed_weights=packed_weights):
            say(f"Wrote {written}")
            paths.append(written)
        _check_files(run, say)
    return tuple(paths)


def verify_run(path: str | os.PathLike[str], *, say: Callable[[str], None] = print) -> tuple[ExportVerification, ...]:
    """Compare the exported files of a run with its checkpoint in PyTorch, on validation data.

    The report is brought up to date.

    Args:
        path: folder of the run.
        say: gets what was found.

    Raises:
        RunError: the folder holds no run, or nothing was exported.
        ExportError: a file is damaged.
    """
    with _writing(path) as run:
        if not run.folder.exported:
            raise RunError(f"{path} holds no exported file. `djpq-nncf export {path}` writes them.")
        return _check_files(run, say)


def write_run_report(path: str | os.PathLike[str], out: Path | None = None) -> Path:
    """Draw the report of a run from what it wrote: no network is loaded.

    Args:
        path: folder of the run.
        out: the HTML file; default is ``report.html`` in the folder.

    Raises:
        RunError: there is no run, or it is not finished.
    """
    folder = RunFolder(path)
    folder.settings  # noqa: B018  (is there a run at all?)
    target = folder.report if out is None else out
    write_report(folder.read_report(), target, history=folder.read_log())
    return target


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[CompressionRun]:
    """The run in a folder, to which no other process writes meanwhile."""
    folder = RunFolder(path)
    folder.settings  # noqa: B018  (where there is no run, no folder is made)
    with folder.writing():
        run = rebuild_run(path)
        _cpu(run)
        yield run


def _cpu(run: CompressionRun) -> None:
    run.model.cpu().eval()
    run.original.cpu().eval()
    run.device = torch.device("cpu")


def _write_files(run: CompressionRun, suffixes: Iterable[str], **options: Any) -> Iterator[Path]:
    for suffix in suffixes:
        path = run.folder.path / f"compressed{suffix}"
        opset = options.get("opset") if suffix == ".onnx" else None
        run.ctrl.export_model(path, opset=opset, packed_weights=bool(options.get("packed_weights")))
        yield path


def _write_original(run: CompressionRun) -> None:
    args, kwargs = to_device(
        find_example(None, run.settings.nncf_config.input_infos, run.train_batches), torch.device("cpu")
    )
    captured = capture(run.original, args, kwargs)
    for suffix in SUFFIXES:
        export_model(captured, run.folder.path / f"fp32{suffix}")


def _check_files(run: CompressionRun, say: Callable[[str], None]) -> tuple[ExportVerification, ...]:
    """Compare every exported file with PyTorch, and write the report with what was found."""
    stripped = run.ctrl.strip().cpu()
    batches = list(itertools.islice(run.val_batches, _VERIFIED_BATCHES))
    found = []
    for path in run.folder.exported:
        found.append(dataclasses.replace(verify_export(path, stripped, batches), path=path.name))
        say(found[-1].to_str())
    report = run.ctrl.report_data(verifications=found, title=_title(run))
    run.folder.write(run.folder.report_data.name, report.to_dict())
    say(f"Wrote {write_run_report(run.folder.path)}")
    return tuple(found)


def _title(run: CompressionRun) -> str:
    return f"{run.settings.model} on {Path(run.settings.data).name}"
