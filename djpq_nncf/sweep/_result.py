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


def read_outcomes(paths: Iterable[Path]) -> list[RunOutcome]:
    """Outcomes of those runs that are finished.

    Raises:
        RunError: a folder is damaged, or of another version.
    """
    return [_outcome(folder) for path in paths if (folder := RunFolder(path)).exists and folder.status == "finished"]


def _outcome(folder: RunFolder) -> RunOutcome:
    rows = folder.read_log()
    last = next((row for row in reversed(rows) if row.get("event") == "epoch"), None)
    if last is None:
        raise RunError(f"{folder.log_file} has no row of an epoch: it was changed. Run this one anew.")
    original = next((row.get("accuracy") for row in rows if row.get("event") == "original"), None)
    accuracy: Any = last.get("accuracy")
    return RunOutcome(
        name=folder.path.name,
        path=folder.path,
        bops_ratio=last["bops_ratio"],
        macs_ratio=last["macs_ratio"],
        size_ratio=last["size_ratio"],
        accuracy=accuracy,
        lost=None if accuracy is None or original is None else 100 * (original - accuracy),
    )
