"""Warm, single-threaded worker processes on this machine."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from benchmark.executors import Failure, Outcome, Outcomes

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 2
"""How often a task is tried again after its worker has died: there may be more free memory later."""

STOP_SECONDS = 5.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass
class _Try:
    """A task and how often it has been started."""

    index: int
    started: int = 0


def run(function: Callable[[T], R], tasks: Sequence[T], *, jobs: int) -> Outcomes[T, R]:
    """Call `function` on every task in `jobs` worker processes and yield the outcomes as they come.

    Workers live as long as there are tasks. One that dies is replaced and its task tried again, `RETRIES`
    times at most. When the generator is closed, workers are terminated; when this process is killed, they end
    by themselves.
    """
    waiting = deque(_Try(index) for index in range(len(tasks)))
    idle = [_Worker(function) for _ in range(min(jobs, len(tasks)))]
    busy: dict[_Worker, _Try] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                attempt, worker = waiting.popleft(), idle.pop()
                attempt.started += 1
                worker.send(tasks[attempt.index])
                busy[worker] = attempt
            for worker in _ready(busy):
                attempt = busy.pop(worker)
                answer = worker.answer()
                if isinstance(answer, _Died):
                    worker.stop()
                    worker = _Worker(function)
                idle.append(worker)
                if not isinstance(answer, _Died):
                    yield Outcome(tasks[attempt.index], answer)
                elif attempt.started <= RETRIES:
                    waiting.append(attempt)
                else:
                    message = f"The worker process ended with {answer.how}, {attempt.started} times in a row."
                    yield Outcome(tasks[attempt.index], Failure("WorkerDied", message))
    finally:
        for worker in [*idle, *busy]:
            worker.terminate()
        for worker in [*idle, *busy]:
            worker.stop()


@dataclass(frozen=True)
class _Died:
    """A worker that ended without an answer; `how` is its exit status in words."""

    how: str


class _Worker:
    """One process, started with its first task."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self._function = pickle.dumps(function)
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def send(self, task: object) -> None:
        """Start the process if need be and hand it a task; a dead one is noticed when its answer is read."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(task)

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._function), name="equipoise worker")
        # Ctrl-C reaches the whole process group. The mask is inherited, so that only this process acts on it. The
        # tracker of multiprocessing would start between the two calls and unblock the signal.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def handles(self) -> tuple[Connection, int]:
        """What becomes ready when the worker has answered or died."""
        assert self._pipe is not None
        assert self._process is not None
        return self._pipe, self._process.sentinel

    def answer(self) -> Any:
        """Return what the worker sent, or how it died."""
        assert self._pipe is not None
        assert self._process is not None
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return _Died(_exit_status(self._process.exitcode))

    def terminate(self) -> None:
        """Ask the process to end, without waiting."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """End the process and wait until it has ended."""
        self.terminate()
        if self._process is None or self._pipe is None:
            return
        self._pipe.close()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._process = None


def _ready(busy: dict[_Worker, _Try]) -> list[_Worker]:
    """Wait for an answer or a death, and return the workers concerned."""
    owner: dict[Connection | int, _Worker] = {handle: worker for worker in busy for handle in worker.handles()}
    return list(dict.fromkeys(owner[handle] for handle in connection.wait(list(owner))))  # type: ignore[index]


def _exit_status(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def serve(pipe: Connection, pickled: bytes) -> None:
    """Answer tasks until the pipe is closed; runs in the worker.

    `pickled` is the function, unpickled late because that may import torch.
    """
    die_with_parent()
    for name in _THREADS:
        os.environ[name] = "1"
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            function = pickle.loads(pickled)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
            message = pickle.dumps(function(task))
        except Exception as error:  # noqa: BLE001 - whatever a task raises is its outcome
            failure = Failure(type(error).__name__, str(error), traceback.format_exc())
            message = pickle.dumps(failure)
        pipe.send_bytes(message)


def die_with_parent() -> None:
    """End this process when its parent has ended in whatever way; nobody is left to receive the answer."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
