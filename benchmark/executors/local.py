"""Warm, single-threaded worker processes on this machine, in turn on its GPUs."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from benchmark.executors import Outcomes, devices, pool
from benchmark.executors.pool import Died
from benchmark.executors.worker import ONE_THREAD, answer

T = TypeVar("T")
R = TypeVar("R")

STOP_SECONDS = 5.0


def run(function: Callable[[T], R], tasks: Sequence[T], *, jobs: int | None = None) -> Outcomes[T, R]:
    """Call `function` on every task in `jobs` worker processes and yield the outcomes as they come.

    `jobs` None is one per core, and on GPUs as many as their memory holds; workers take the GPUs in turn. They live as
    long as tasks wait. When the generator is closed, they are terminated; when this process is killed, they end by
    themselves.
    """
    gpus = devices.gpus()
    names: list[str | None] = [gpu.name for gpu in gpus] or [None]
    jobs = min(jobs or devices.default_jobs(devices.cores(), gpus), len(tasks))
    pickled = pickle.dumps(function)
    workers = [_Worker(pickled, names[number % len(names)]) for number in range(jobs)]
    return pool.serve(tasks, workers, _ready, least=len(names))


class _Worker:
    """A process of this machine, on the GPU of that name."""

    def __init__(self, function: bytes, gpu: str | None) -> None:
        self._function, self._gpu = function, gpu
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def send(self, task: object) -> None:
        if self._process is None:
            self._start()
        assert self._pipe is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(task)

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._function, self._gpu)
        self._process = context.Process(target=serve, args=arguments, name="equipoise worker")
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
        assert self._pipe is not None
        assert self._process is not None
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return Died(_exit_status(self._process.exitcode))

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
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


def _ready(busy: Collection[_Worker]) -> list[_Worker]:
    """Wait for an answer or a death, and return the workers concerned."""
    owner: dict[Connection | int, _Worker] = {handle: worker for worker in busy for handle in worker.handles()}
    return list(dict.fromkeys(owner[handle] for handle in connection.wait(list(owner))))  # type: ignore[index]


def _exit_status(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def serve(pipe: Connection, function: bytes, gpu: str | None) -> None:
    """Answer tasks until the pipe is closed; runs in the worker.

    `function` is pickled and unpickled late because that may import torch, which reads the environment then.
    """
    die_with_parent()
    os.environ.update(ONE_THREAD)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):  # reset: killed while it was sending
            return
        pipe.send_bytes(answer(function, task))


def die_with_parent() -> None:
    """End this process when its parent has ended in whatever way; nobody is left to receive the answer."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
