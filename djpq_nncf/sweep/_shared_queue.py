# SPDX-License-Identifier: Apache-2.0
"""Hands out the trials of a sweep to processes that share its folder and an Optuna storage."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from djpq_nncf.errors import RunError
from djpq_nncf.sweep._folder import SweepFolder
from djpq_nncf.sweep._grid import Trial
from djpq_nncf.sweep._queue import Claim


class SharedQueue:
    """Each trial is run by one of the processes that name the same folder and storage.

    The run folders say what is finished and locks in the folder who runs what; the study in the storage keeps every
    attempt and what went wrong. A trial whose process died goes to the next that is free, one that failed only to a
    process that begins later.

    Args:
        storage: a file that all can write to, or the URL of a database (``postgresql://...``). SQLite will not do: its
            locks do not hold between machines.
        folder: of the sweep, which has begun.
        trials: in the order to run them.

    Raises:
        RunError: Optuna is not installed, or the storage cannot be opened.
    """

    def __init__(self, storage: str, folder: SweepFolder, trials: Sequence[Trial]) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise RunError("--storage needs Optuna: pip install 'djpq-nncf[sweep]'.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage, self._folder, self._trials = storage, folder, {trial.name: trial for trial in trials}
        self._states = optuna.trial.TrialState
        self._errors = (optuna.exceptions.OptunaError, OSError, ValueError)
        try:
            if storage.startswith("sqlite:"):
                raise ValueError("the locks of SQLite do not hold between machines; name a plain file instead")
            opened = (
                optuna.storages.RDBStorage(storage)
                if "://" in storage
                else optuna.storages.JournalStorage(JournalFileBackend(storage))
            )
            with folder.locked():
                self._study = optuna.create_study(
                    storage=opened, study_name=f"{folder.path.resolve().name} {folder.id}", load_if_exists=True
                )
                self._earlier = {attempt.number for attempt in self._attempts(self._states.FAIL)}
        except Exception as error:  # of the database's driver
            raise RunError(
                f"The storage {storage} cannot be opened: {error}. Check the path or URL, and who may write there; a "
                "damaged file may be removed, as finished runs are known from their folders."
            ) from error

    def take(self) -> Claim | None:
        with self._folder.locked(), self._reported():
            failures = self._failures()
            for trial in self._trials.values():
                if trial.name in failures or self._is_finished(trial):
                    continue
                if (lock := self._folder.claim(trial.name)) is not None:
                    return Claim(trial, lock, self._begun(trial))
        return None

    def end(self, claim: Claim, failure: str | None) -> None:
        with self._folder.locked(), self._reported():
            if failure is None:
                self._study.tell(claim.record, 0.0)
            else:
                claim.record.set_user_attr("failure", failure)
                self._study.tell(claim.record, state=self._states.FAIL)
        claim.lock.release()

    def waits(self) -> bool:
        failures = self.failures()
        return not all(trial.name in failures or self._is_finished(trial) for trial in self._trials.values())

    def failures(self) -> dict[str, str]:
        with self._folder.locked(), self._reported():
            return self._failures()

    def _begun(self, trial: Trial) -> Any:
        """A new attempt in the study, where earlier ones are over: their processes have died."""
        for attempt in self._attempts(self._states.RUNNING):
            if attempt.user_attrs.get("run") == trial.name:
                self._study.tell(attempt.number, state=self._states.FAIL)
        record = self._study.ask()
        record.set_user_attr("run", trial.name)
        return record

    def _failures(self) -> dict[str, str]:
        return {
            attempt.user_attrs["run"]: attempt.user_attrs["failure"]
            for attempt in self._attempts(self._states.FAIL)
            if attempt.number not in self._earlier and {"run", "failure"} <= set(attempt.user_attrs)
        }

    def _is_finished(self, trial: Trial) -> bool:
        try:
            return self._folder.is_finished(trial.name)
        except RunError:
            return False  # whoever takes it says what is wrong

    def _attempts(self, state: Any) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False, states=(state,)))

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise RunError(
                f"The storage {self._storage} cannot be used any more: {error}. Mend that and run the same command; it "
                "continues."
            ) from error
