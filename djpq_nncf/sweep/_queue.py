# SPDX-License-Identifier: Apache-2.0
"""Who runs which trial: threads of this process, or all processes that share a storage."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from djpq_nncf.errors import RunError
from djpq_nncf.sweep._grid import Trial

Work = Callable[[Trial], bool]
"""Runs a trial; whether it succeeded."""


class TrialQueue(Protocol):
    """Hands out trials, each once."""

    def run(self, work: Work, jobs: int) -> None:
        """Call ``work`` with each trial, in ``jobs`` threads, until none is left for this process."""


class LocalQueue:
    """All trials for this process.

    Args:
        trials: in the order to run them.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = trials

    def run(self, work: Work, jobs: int) -> None:
        with ThreadPoolExecutor(jobs) as pool:
            for future in [pool.submit(work, trial) for trial in self._trials]:
                future.result()


class SharedQueue:
    """Trials in an Optuna storage: each is run by one of the processes that name the same storage.

    One that failed, or whose process died, is tried again by the next process that begins.

    Args:
        storage: a file that all can write to, or the URL of a database (``postgresql://...``). SQLite will not do: it
            hands a trial to two processes at times.
        name: of the sweep in it.
        trials: the same in every process.
        is_running: whether some process works on a trial at the moment.

    Raises:
        RunError: Optuna is not installed, or the storage cannot be opened.
    """

    def __init__(
        self, storage: str, name: str, trials: Sequence[Trial], *, is_running: Callable[[Trial], bool]
    ) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise RunError("--storage needs Optuna: pip install 'djpq-nncf[sweep]'.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._trials = {trial.name: trial for trial in trials}
        self._pruned = optuna.TrialPruned
        try:
            if storage.startswith("sqlite:"):
                raise ValueError("SQLite hands a trial to two processes at times; name a plain file instead")
            opened = (
                optuna.storages.RDBStorage(storage)
                if "://" in storage
                else optuna.storages.JournalStorage(JournalFileBackend(storage))
            )
            self._study = optuna.create_study(storage=opened, study_name=name, load_if_exists=True)
        except Exception as error:  # of the database's driver
            raise RunError(
                f"The storage {storage} cannot be opened: {error}. Check the path or URL, and who may write there."
            ) from error
        states = optuna.trial.TrialState
        taken = set()
        for known in self._study.get_trials(states=(states.WAITING, states.RUNNING, states.COMPLETE)):
            run = known.user_attrs.get("run")
            if known.state != states.RUNNING or (run in self._trials and is_running(self._trials[run])):
                taken.add(run)
            else:
                self._study.tell(known.number, state=states.FAIL)
        for trial in trials:
            if trial.name not in taken:
                self._study.enqueue_trial({"run": trial.name}, user_attrs={"run": trial.name})

    def run(self, work: Work, jobs: int) -> None:
        def objective(handed: Any) -> float:
            # without one that waits, Optuna makes up another
            if "run" not in handed.user_attrs:
                self._study.stop()
                raise self._pruned
            trial = self._trials[handed.suggest_categorical("run", sorted(self._trials))]
            if not work(trial):
                raise _FailedError
            return 0.0

        self._study.optimize(objective, n_jobs=jobs, catch=(_FailedError,))


class _FailedError(Exception):
    pass
