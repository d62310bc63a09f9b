# SPDX-License-Identifier: Apache-2.0
"""Hands out the trials of a sweep, each to one process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from filelock import FileLock

from djpq_nncf.sweep._folder import SweepFolder
from djpq_nncf.sweep._grid import Trial


@dataclass(frozen=True)
class Claim:
    """A trial that no other process may run.

    Attributes:
        trial: to run.
        lock: held until it has ended.
        record: of the queue that handed it out.
    """

    trial: Trial
    lock: FileLock
    record: Any = None


class TrialQueue(Protocol):
    """Hands out trials. Its methods are called from several threads."""

    def take(self) -> Claim | None:
        """The next trial for this process; None: at the moment there is none."""

    def end(self, claim: Claim, failure: str | None) -> None:
        """Give back a trial that has ended, with what went wrong."""

    def waits(self) -> bool:
        """Whether a trial that another process runs may yet come to this one, as when that process dies."""

    def failures(self) -> dict[str, str]:
        """What went wrong since this process began, by name of the trial; in every process that takes part."""


class LocalQueue:
    """Trials for this process alone; those that another process runs at that moment are left to it.

    Args:
        folder: of the sweep.
        trials: in the order to run them.
    """

    def __init__(self, folder: SweepFolder, trials: Sequence[Trial]) -> None:
        self._folder = folder
        self._left = list(trials)
        self._failures: dict[str, str] = {}

    def take(self) -> Claim | None:
        with self._folder.locked():
            while self._left:
                trial = self._left.pop(0)
                if (lock := self._folder.claim(trial.name)) is not None:
                    return Claim(trial, lock)
        return None

    def end(self, claim: Claim, failure: str | None) -> None:
        if failure is not None:
            self._failures[claim.trial.name] = failure
        claim.lock.release()

    def waits(self) -> bool:
        return False

    def failures(self) -> dict[str, str]:
        return dict(self._failures)
