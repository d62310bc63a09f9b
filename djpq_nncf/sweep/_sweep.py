# SPDX-License-Identifier: Apache-2.0
"""Runs the trials that a queue hands out, several at a time."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from djpq_nncf.algorithms._progress import track
from djpq_nncf.errors import RunError
from djpq_nncf.sweep._folder import SweepFolder
from djpq_nncf.sweep._grid import Trial
from djpq_nncf.sweep._process import CompressProcesses
from djpq_nncf.sweep._queue import TrialQueue

_POLL_SECONDS = 1.0


def run_sweep(
    folder: SweepFolder,
    trials: Sequence[Trial],
    queue: TrialQueue,
    arguments: Sequence[str],
    *,
    jobs: int,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Compress once for each trial the queue hands out; runs that are finished stay, others continue.

    Interrupted, it ends the runs that it began.

    Args:
        folder: of the sweep, which has begun.
        trials: all of them.
        queue: hands them out.
        arguments: for ``djpq-nncf compress`` besides config and folder.
        jobs: processes at a time; they share the cores.
        say: gets a line for each run that ends.

    Returns:
        The reason that each failed run printed, by name.

    Raises:
        RunError: the folder or the storage cannot be used any more.
    """
    processes = CompressProcesses(folder, arguments, jobs)
    stopped = threading.Event()
    with track("sweep", len(trials)) as advance:

        def work() -> None:
            while not stopped.is_set() and (claim := queue.take()) is not None:
                name = claim.trial.name
                failure = _run(folder, processes, name)
                if stopped.is_set():
                    # not a failure of the run: another process may continue it at once
                    claim.lock.release()
                    return
                queue.end(claim, failure)
                say(f"{name}: {'finished' if failure is None else f'failed, {failure}'}")
                advance(1)

        told = False
        while True:
            with ThreadPoolExecutor(jobs) as pool:
                try:
                    for ended in as_completed([pool.submit(work) for _ in range(jobs)]):
                        ended.result()
                except BaseException:
                    stopped.set()
                    processes.stop()
                    raise
            if not queue.waits():
                return queue.failures()
            if not told:
                say("Other processes run the rest. This one waits, and takes over where one of them dies.")
                told = True
            time.sleep(_POLL_SECONDS)


def _run(folder: SweepFolder, processes: CompressProcesses, name: str) -> str | None:
    try:
        return None if folder.is_finished(name) else processes.run(name)
    except RunError as error:
        return str(error)
