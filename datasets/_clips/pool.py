"""A pool of processes that decode clips, one thread each: results in order, memory bounded, crashes survived."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from benchmark.executors.devices import cores

Clip = TypeVar("Clip")
Result = TypeVar("Result")

AHEAD = 4
"""Results per process that may wait for their turn."""


def decode_all(
    decode: Callable[[Clip], Result],
    clips: Iterable[Clip],
    crashed: Callable[[Clip], Result],
    jobs: int | None = None,
) -> Generator[Result, None, None]:
    """Yield `decode(clip)` for every clip, in order, from `jobs` processes (None: one per core).

    `decode` must be importable by name (a function of a module, or `functools.partial` of one). Where it takes its
    process down, as a broken file can do inside a C library, the result is `crashed(clip)`; an exception is raised
    here.
    """
    jobs = jobs or cores()
    queue = iter(clips)
    waiting: deque[tuple[Clip, Future[Result]]] = deque()
    pool = _processes(jobs)
    try:
        while True:
            waiting.extend(
                (clip, _submitted(pool, decode, clip)) for clip in islice(queue, jobs * AHEAD - len(waiting))
            )
            if not waiting:
                return
            clip, future = waiting.popleft()
            try:
                yield future.result()
            except BrokenProcessPool:
                # Any clip in the pool may have been the one: this one decides alone, the others start afresh.
                pool.shutdown()
                yield _alone(decode, clip, crashed)
                pool = _processes(jobs)
                waiting = deque((other, _submitted(pool, decode, other)) for other, _ in waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, decode: Callable[[Clip], Result], clip: Clip) -> Future[Result]:
    try:
        return pool.submit(decode, clip)
    except BrokenProcessPool as error:  # by a clip before this one, whose turn has not come
        future: Future[Result] = Future()
        future.set_exception(error)
        return future


def _alone(decode: Callable[[Clip], Result], clip: Clip, crashed: Callable[[Clip], Result]) -> Result:
    with _processes(1) as pool:
        try:
            return pool.submit(decode, clip).result()
        except BrokenProcessPool:
            return crashed(clip)


def _processes(jobs: int) -> ProcessPoolExecutor:
    # Spawned: a fork of a process that has loaded torch can hang.
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_started)


def _started() -> None:
    """Leave Ctrl-C, which reaches all processes, to the one that waits for the results, and end when that has ended."""
    from benchmark.executors.local import die_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
