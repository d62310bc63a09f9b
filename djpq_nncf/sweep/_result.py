# SPDX-License-Identifier: Apache-2.0
"""What a run came to, read from its folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from djpq_nncf.errors import RunError
from djpq_nncf.run import RunFolder


@dataclass(frozen=True)
class RunOutcome:
    """Figures of a finished run.

    Attributes:
        name: of its folder.
        path: of its folder.
        bops_ratio, macs_ratio, size_ratio: compressed / original.
        accuracy: of the compressed network on validation data, 0 to 1; None where the training logs none.
        lost: points of accuracy lost against the original; None likewise.
    """

    name: str
    path: Path
    bops_ratio: float
    macs_ratio: float
    size_ratio: float
    accuracy: float | None
    lost: float | None


def read_outcomes(paths: Iterable[Path]) -> tuple[list[RunOutcome], dict[str, str]]:
    """Outcomes of those runs that are finished, and what is wrong with those that cannot be read, by name."""
    outcomes, damaged = [], {}
    for path in paths:
        folder = RunFolder(path)
        try:
            if folder.exists and folder.status == "finished":
                outcomes.append(_outcome(folder))
        except RunError as error:
            damaged[path.name] = str(error)
    return outcomes, damaged


def _outcome(folder: RunFolder) -> RunOutcome:
    rows = folder.read_log()
    try:
        last: dict[str, Any] = next((row for row in reversed(rows) if row.get("event") == "epoch"), {})
        original = next((row.get("accuracy") for row in rows if row.get("event") == "original"), None)
        accuracy: Any = last.get("accuracy")
        return RunOutcome(
            name=folder.path.name,
            path=folder.path,
            bops_ratio=float(last["bops_ratio"]),
            macs_ratio=float(last["macs_ratio"]),
            size_ratio=float(last["size_ratio"]),
            accuracy=accuracy,
            lost=None if accuracy is None or original is None else 100 * (original - accuracy),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder.log_file} does not say what its last epoch came to ({type(error).__name__}: {error}): it was "
            f"changed. Remove {folder.path} and run the same command, which begins this run anew."
        ) from error
