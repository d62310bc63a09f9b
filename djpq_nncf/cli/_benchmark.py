# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf benchmark``: from what a user types to a table."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from djpq_nncf.benchmark import RUNTIMES, Entry, Plan, run_benchmark, write_variants
from djpq_nncf.cli._model import find_inputs, is_file, is_folder, parse_shape
from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import DataError, ExportError, RunError
from djpq_nncf.export import complete_files
from djpq_nncf.run import RunFolder, load_model


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    models: tuple[str, ...]
    input_shape: str | None
    config: Path | None
    shares: tuple[float, ...]
    calibration: Path | None
    runtimes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    rounds: int
    threads: int | None
    out: Path | None
    json: Path | None


def benchmark_models(request: Request, *, say: Callable[[str], None]) -> str:
    """Make files of networks, time all files, write the JSON; returns the table.

    Raises:
        ConfigError: the config is not valid.
        CaptureError: there is no such network, or it cannot be captured.
        DataError: shapes or options do not fit.
        ExportError: a file is missing, damaged or cannot be written.
        RunError: a folder holds no run, or one whose files are missing.
    """
    _check(request)
    with ExitStack() as stack:
        folder = request.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        entries = [entry for model in request.models for entry in _entries(model, request, folder, say)]
        result = run_benchmark(
            entries,
            batch_sizes=request.batch_sizes,
            rounds=request.rounds,
            threads=request.threads or torch.get_num_threads(),
        )
    if request.json is not None:
        with complete_files(request.json) as temporary:
            temporary.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return result.to_str()


def _check(request: Request) -> None:
    """What would only show after minutes of measuring, or not at all."""
    for name in request.runtimes:
        if name not in RUNTIMES:
            raise DataError(f"--runtime is '{name}'. Write {' or '.join(RUNTIMES)}.")
    suffixes = _suffixes(request)
    for model in request.models:
        if is_file(model) and Path(model).suffix not in suffixes:
            raise DataError(f"'{model}' does not run in {' or '.join(request.runtimes)}. Leave --runtime out.")
    if all(is_file(model) or is_folder(model) for model in request.models):
        for option, given in (
            ("--config", request.config),
            ("--prune", any(request.shares)),
            ("--calibration", request.calibration),
            ("--out", request.out),
        ):
            if given:
                raise DataError(f"{option} is for networks; files are timed as they are. Leave it out.")
    if request.json is not None and not request.json.parent.is_dir():
        raise ExportError(f"Cannot write {request.json}: the folder {request.json.parent} does not exist.")


def _entries(model: str, request: Request, folder: Path, say: Callable[[str], None]) -> Iterator[Entry]:
    shape = None if request.input_shape is None else parse_shape(request.input_shape)
    if is_file(model):
        yield Entry(model, Path(model), shape=shape)
        return
    if is_folder(model):
        yield from _of_run(model, _suffixes(request), shape)
        return
    network = load_model(model)
    config = None if request.config is None else NNCFConfig.from_json(request.config)
    example, dynamic = find_inputs(() if config is None else config.input_infos, shape)
    plan = Plan(
        example=example,
        suffixes=_suffixes(request),
        config=config,
        shares=request.shares,
        calibration=request.calibration,
        dynamic=dynamic,
    )
    own = folder / model.replace(":", "-")
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"Cannot make the folder {own}: {error.strerror}. Choose another one.") from error
    yield from write_variants(model, network, plan, own, say=say)


def _of_run(path: str, suffixes: tuple[str, ...], shape: tuple[int, ...] | None) -> Iterator[Entry]:
    """The network of a run before compression and after, which is compared with it."""
    folder = RunFolder(path)
    folder.settings  # noqa: B018  (is there a run at all?)
    for name, variant in (("fp32", "FP32"), ("compressed", "compressed")):
        for suffix in suffixes:
            file = folder.path / f"{name}{suffix}"
            if not file.is_file():
                raise RunError(
                    f"The run in {path} has no {file.name}. If it is not finished, the same `djpq-nncf compress` "
                    f"continues it; `djpq-nncf export {path}` writes the compressed files again."
                )
            yield Entry(path, file, variant=variant, is_baseline=name == "fp32", shape=shape)


def _suffixes(request: Request) -> tuple[str, ...]:
    return tuple(suffix for name, suffix in RUNTIMES.items() if not request.runtimes or name in request.runtimes)
