"""Tasks that one job of a cluster runs one after the other, and the folder that it shares with the driver."""

from __future__ import annotations

import importlib
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from benchmark import leases
from benchmark.executors import local
from benchmark.store import storing, write_atomically

Numbered = tuple[int, Any]
"""A task with its number in the driver's list."""


@dataclass(frozen=True)
class Spool:
    """A folder on a disk that driver and jobs see: a file per finished task, and one per task that was begun."""

    folder: Path

    @property
    def jobs(self) -> Path:
        """Folder of what the cluster itself needs and writes: scripts, logs."""
        return self.folder / "jobs"

    def _outcome(self, number: int) -> Path:
        return self.folder / "outcomes" / str(number)

    def _begun(self, number: int) -> Path:
        return self.folder / "begun" / str(number)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, hold its lease, so that other drivers leave it alone, and remove it; raises StorageError."""
        with storing(self.folder):
            self.folder.mkdir(parents=True)
        with self.lease():
            with storing(self.folder):
                # Last what others look for: the lease is held by then.
                for folder in (self._outcome(0).parent, self._begun(0).parent, self.jobs):
                    folder.mkdir()
            try:
                yield
            finally:
                self.remove()

    def lease(self) -> AbstractContextManager[bool]:
        """Hold what the driver holds as long as it lives; yields whether it was free."""
        return leases.hold(self.folder, seconds=0)

    def begin(self, number: int) -> None:
        """Note that the task is being tried."""
        self._begun(number).touch()

    def put(self, number: int, result: object) -> None:
        """Keep what became of the task."""
        write_atomically(self._outcome(number), pickle.dumps(result))

    def finished(self, numbers: Collection[int]) -> set[int]:
        """Return which of the tasks have an outcome."""
        return {int(file.name) for file in self._outcome(0).parent.iterdir() if file.name.isdecimal()} & {*numbers}

    def take(self, number: int) -> Any:
        """Return what became of a finished task."""
        return pickle.loads(self._outcome(number).read_bytes())

    def suspects(self, lost: Iterable[int]) -> list[int]:
        """Return which tasks of a job that is gone were being tried, all of them when none was, and forget it."""
        lost = list(lost)
        begun = [number for number in lost if self._begun(number).exists()]
        for number in begun:
            self._begun(number).unlink()
        return begun or lost

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Bundle:
    """What a job runs: the function on every task of its bundle that has no outcome yet, `cells` at a time."""

    spool: Spool
    function: Callable[[Any], Any]
    cells: int

    def __call__(self, tasks: Sequence[Numbered]) -> None:
        """Run the tasks in worker processes, so that one that dies is tried again; runs in the job."""
        # Cancelled: end now, and the workers with this process. submitit ignores the signal.
        signal.signal(signal.SIGTERM, _end)
        finished = self.spool.finished([number for number, _ in tasks])
        left = [(number, task) for number, task in tasks if number not in finished]
        with closing(local.run(partial(_begin, self.spool, self.function), left, jobs=self.cells)) as outcomes:
            for outcome in outcomes:
                self.spool.put(outcome.task[0], outcome.result)

    def checkpoint(self, tasks: Sequence[Numbered]) -> Any:
        """Return what submitit queues again at the time limit: the same, as finished tasks are skipped."""
        return importlib.import_module("submitit.helpers").DelayedSubmission(self, tasks)


def _begin(spool: Spool, function: Callable[[Any], Any], numbered: Numbered) -> Any:
    number, task = numbered
    spool.begin(number)
    return function(task)


def _end(signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signum)


def bundles(numbers: Sequence[int], jobs: int, shares: int, most: int) -> Iterator[list[int]]:
    """Deal the tasks out to `shares` bundles per job that runs at once, `most` at most: neighbours go apart."""
    count = min(len(numbers), jobs * shares, most)
    for first in range(count):
        yield list(numbers[first::count])
