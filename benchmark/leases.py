"""Leases: locks that the system releases when their holder dies, in whatever way, so that running and dead differ.

A lease is a lock on the file `lease` in a folder of unfinished business: it counts whatever the file contains and
whenever it was written.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LEASE = "lease"
OWNER = stat.S_IRUSR | stat.S_IWUSR


@contextmanager
def hold(work: Path, seconds: float) -> Iterator[bool]:
    """Hold the lease in a folder, for which to wait so long; yields whether it was free. Raises OSError."""
    path = work / LEASE
    _mend(path)
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError):  # not found: its holder has just finished and cleared the folder
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def held(work: Path) -> bool:
    """Return whether a living process holds the lease in a folder. Raises OSError."""
    if not (work / LEASE).is_file():
        return False
    with hold(work, seconds=0) as free:
        return not free


def _mend(path: Path) -> None:
    """Make a damaged lease one that can be locked, as every further try would otherwise fail."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # nobody can hold a folder
        return
    with suppress(OSError):  # not there, or not ours to change: then what taking it raises names the file
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & OWNER != OWNER:
            path.chmod(mode | OWNER)
