"""The same work on many items, several at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

GRACE_SECONDS = 1.0
"""How long threads have to notice that they are to stop."""


def each(work: Callable[[T], object], items: Iterable[T], at_once: int, stopped: Event) -> None:
    """Call `work` on every item in threads, in order, `at_once` at a time; returns when all calls have.

    The first exception ends it and is raised; so does Ctrl-C. `stopped` is set then, for the other calls to watch.
    They are not waited for any longer than a second: the threads are daemons (those of an executor are not), so that
    one that listens to a silent network keeps nobody from leaving.
    """
    waiting = deque(items)
    failures: list[BaseException] = []

    def run() -> None:
        while not stopped.is_set():
            try:
                item = waiting.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                if not stopped.is_set():
                    failures.append(error)
                    stopped.set()

    threads = [Thread(target=run, daemon=True) for _ in range(min(at_once, len(waiting)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            # In short steps: another thread may stop all, and where signals do not end a wait, Ctrl-C is seen.
            while thread.is_alive() and not stopped.is_set():
                thread.join(0.1)
    except BaseException:
        stopped.set()
        raise
    finally:
        until = time.monotonic() + GRACE_SECONDS
        for thread in threads if stopped.is_set() else ():
            thread.join(max(0.0, until - time.monotonic()))
    if failures:
        raise failures[0]
