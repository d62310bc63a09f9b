# SPDX-License-Identifier: Apache-2.0
"""What follows the training of a run: export, the check of the files, and the report."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from djpq_nncf.algorithms._data import find_example, to_device
from djpq_nncf.capture import capture
from djpq_nncf.errors import RunError
from djpq_nncf.export import ExportVerification, export_model, verify_export
from djpq_nncf.report import RunReport, write_report
from djpq_nncf.run._folder import RunFolder
from djpq_nncf.run._run import CompressionRun, build_run

SUFFIXES = (".xml", ".onnx")
_VERIFIED_BATCHES = 4


def finish_run(run: CompressionRun, *, say: Callable[[str], None]) -> None:
    """Write FP32 and compressed files, check those, and write the report."""
    _cpu(run)
    folder = run.folder
    for path in _write_files(run, SUFFIXES):
        say(f"Wrote {path}")
    _write_original(run)
    verifications = _verify(run, folder.exported)
    for verification in verifications:
        say(verification.to_str())
    report = run.ctrl.report_data(verifications=verifications, title=_title(run))
    folder.write(folder.report_data.name, report.to_dict())
    say(f"Wrote {write_run_report(folder.path)}")


def export_run(
    path: str | os.PathLike[str],
    *,
    suffixes: Sequence[str] = SUFFIXES,
    opset: int | None = None,
    packed_weights: bool = False,
) -> tuple[Path, ...]:
    """Write the network of a run again, from its checkpoint: ``compressed.xml`` and ``compressed.onnx``.

    Args:
        path: folder of the run.
        suffixes: which of ``".xml"`` and ``".onnx"``.
        opset: of ONNX; see `djpq_nncf.export.export_model`.
        packed_weights: pack weights of few bits.

    Raises:
        RunError: the folder holds no run, or one without a checkpoint.
        ExportError: a file cannot be written.
    """
    run = rebuild_run(path)
    with run.folder.writing():
        return tuple(_write_files(run, suffixes, opset=opset, packed_weights=packed_weights))


def verify_run(path: str | os.PathLike[str]) -> tuple[ExportVerification, ...]:
    """Compare the exported files of a run with its checkpoint in PyTorch, on validation data.

    Raises:
        RunError: the folder holds no run, or nothing was exported.
        ExportError: a file is damaged.
    """
    folder = RunFolder(path)
    folder.settings  # noqa: B018  (is there a run at all?)
    if not folder.exported:
        raise RunError(f"{folder.path} holds no exported file. `djpq-nncf export {folder.path}` writes them.")
    return _verify(rebuild_run(path), folder.exported)


def write_run_report(path: str | os.PathLike[str], out: Path | None = None) -> Path:
    """Draw the report of a run from what it wrote: no network is loaded.

    Args:
        path: folder of the run.
        out: the HTML file; default is ``report.html`` in the folder.

    Raises:
        RunError: there is no run, or it is not finished.
    """
    folder = RunFolder(path)
    status = folder.status
    if not folder.report_data.is_file():
        raise RunError(
            f"The run in {folder.path} is not finished (status {status}). Run the same `djpq-nncf compress` again; it "
            "continues."
        )
    try:
        content = json.loads(folder.report_data.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(
            f"{folder.report_data} is damaged ({error}). Remove it, set nothing else, and run the same `djpq-nncf "
            "compress` again."
        ) from error
    target = folder.report if out is None else out
    write_report(RunReport.from_dict(content), target, history=folder.read_log())
    return target


def rebuild_run(path: str | os.PathLike[str]) -> CompressionRun:
    """The network of a run as its last checkpoint has it, on the CPU.

    Raises:
        RunError: the folder holds no run, or no epoch was completed.
    """
    folder = RunFolder(path)
    settings = folder.settings
    if not folder.checkpoint.is_file():
        raise RunError(
            f"The run in {folder.path} has no checkpoint: no epoch was completed. Run the same `djpq-nncf compress` "
            "again; it continues."
        )
    run = build_run(folder, settings, "cpu", 0)
    _cpu(run)
    return run


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


def _verify(run: CompressionRun, paths: Iterable[Path]) -> tuple[ExportVerification, ...]:
    stripped = run.ctrl.strip().cpu()
    batches = list(itertools.islice(run.val_batches, _VERIFIED_BATCHES))
    return tuple(dataclasses.replace(verify_export(path, stripped, batches), path=path.name) for path in paths)


def _title(run: CompressionRun) -> str:
    return f"{run.settings.model} on {Path(run.settings.data).name}"
