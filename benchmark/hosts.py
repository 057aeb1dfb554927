"""What the threads of a fetch know of the hosts they ask: which wants to be left alone, which is given up."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


class UnavailableError(Exception):
    """This way to a file is closed; another one may be open."""


class ClosedError(UnavailableError):
    """A host is not asked any more, whatever the file."""


class StoppedError(Exception):
    """The fetch ends: nothing is asked for or written any more."""


@dataclass
class _State:
    failures: int = 0
    quiet_until: float = 0.0
    closed: str = ""


@dataclass
class Hosts:
    """Pauses that hosts asked for, and a fuse: a host that `limit` files in a row were given up at is not asked again.

    Without the fuse, thousands of files would each wait for a network that is dead. `stopped` ends every pause.
    """

    limit: int
    stopped: threading.Event
    _states: dict[str, _State] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _of(self, host: str) -> _State:
        return self._states.setdefault(host, _State())

    def enter(self, host: str) -> None:
        """Return when `host` may be asked; raises ClosedError when it is given up, StoppedError when the fetch ends."""
        while True:
            with self._lock:
                state = self._of(host)
                closed, wait = state.closed, state.quiet_until - time.monotonic()
            if self.stopped.is_set():
                raise StoppedError
            if closed:
                raise ClosedError(f"{host} is not asked any more: {closed}")
            if wait <= 0:
                return
            self.stopped.wait(wait)

    def pause(self, host: str, seconds: float) -> None:
        """Ask nothing of `host` for that long."""
        with self._lock:
            state = self._of(host)
            state.quiet_until = max(state.quiet_until, time.monotonic() + seconds)

    def close(self, host: str, reason: str) -> None:
        """Ask nothing of `host` again."""
        with self._lock:
            self._of(host).closed = reason

    def answered(self, host: str) -> None:
        """Note that `host` works: it gave a file, or said for good that it has none."""
        with self._lock:
            self._of(host).failures = 0

    def gave_up(self, host: str, reason: str) -> None:
        """Note that a file was given up at `host`, which let every attempt down."""
        with self._lock:
            state = self._of(host)
            state.failures += 1
            if state.failures == self.limit:
                state.closed = f"{self.limit} files in a row were given up, the last one for {reason}"
