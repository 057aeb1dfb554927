"""Warm workers and what becomes of their tasks, the same wherever the workers are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from benchmark.executors import Failure, Outcome, Outcomes

T = TypeVar("T")
W = TypeVar("W", bound="Worker")

RETRIES = 2
"""How often a task is tried again after its worker has died or had no memory left: there may be more later."""

OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
"""Exceptions of torch and Python that say so, by name: the driver need not import torch."""


@dataclass(frozen=True)
class Died:
    """A worker that ended without an answer; `how` is its end in a few words, `details` whatever else is known."""

    how: str
    details: str = ""

    def failure(self, times: int) -> Failure:
        """Return the failure of a task whose workers died that often."""
        message = f"The worker process ended with {self.how}, {times} times in a row."
        return Failure("WorkerDied", message, self.details)


class Worker(Protocol):
    """One process, which starts with its first task, and again with the next one after it was stopped."""

    def send(self, task: object) -> None:
        """Start the process if need be and hand it a task; a dead one is noticed when its answer is read."""

    def answer(self) -> Any:
        """Return the task's value or Failure, or `Died`."""

    def terminate(self) -> None:
        """Ask the process to end, without waiting."""

    def stop(self) -> None:
        """End the process, if there is one, and release what it holds."""


@dataclass
class _Try:
    """A task and how often it has been started."""

    index: int
    started: int = 0


def serve(
    tasks: Sequence[T], workers: Sequence[W], ready: Callable[[Collection[W]], Collection[W]], *, least: int = 1
) -> Outcomes[T, Any]:
    """Hand the tasks to the workers and yield the outcomes as they come.

    `ready` waits until workers have answered or died and returns them. A worker that dies is started again and its
    task tried again, `RETRIES` times at most. A worker whose task failed starts afresh too: some errors, CUDA's among
    them, would fail every later task. One whose task found no memory left is dropped, down to the `least` number of
    them, and the task tried again: the workers share the memory. When the generator is closed, workers are stopped.
    """
    waiting = deque(_Try(index) for index in range(len(tasks)))
    idle, busy = list(workers), dict[W, _Try]()
    try:
        while waiting or busy:
            while waiting and idle:
                attempt, worker = waiting.popleft(), idle.pop()
                attempt.started += 1
                worker.send(tasks[attempt.index])
                busy[worker] = attempt
            # Nothing waits for these: their memory, or their place in a cluster, is of use to the others.
            for worker in idle:
                worker.stop()
            for worker in ready(busy):
                attempt = busy.pop(worker)
                answer = worker.answer()
                crowded = isinstance(answer, Failure) and answer.kind in OUT_OF_MEMORY
                if isinstance(answer, Failure | Died):
                    worker.stop()
                if not crowded or len(idle) + len(busy) < least:
                    idle.append(worker)
                if (crowded or isinstance(answer, Died)) and attempt.started <= RETRIES:
                    waiting.append(attempt)
                else:
                    result = answer.failure(attempt.started) if isinstance(answer, Died) else answer
                    yield Outcome(tasks[attempt.index], result)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.stop()
