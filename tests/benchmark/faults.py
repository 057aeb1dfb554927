"""What may happen to a grid and to its files: each fault is a function that says whether it found something to hit."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from benchmark.protocol import Cell
from benchmark.store import CorruptResultError, Store
from tests.benchmark.processes import alive

TEN_YEARS = 10 * 365 * 24 * 3600.0

Fault = Callable[["Victim", random.Random], bool]


class Victim:
    """A store of cells, and the processes that train them."""

    def __init__(self, home: Path, cells: list[Cell]) -> None:
        self.home, self.cells = home, cells
        self.store = Store(home / "results")
        self.lost: set[str] = set()
        """Keys whose finished result was damaged since the last look."""

    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells if self._whole(cell)]

    def unfinished(self) -> list[Cell]:
        return [cell for cell in self.cells if not self._whole(cell)]

    def _whole(self, cell: Cell) -> bool:
        try:
            return self.store.read(cell) is not None
        except CorruptResultError:
            return False

    def work(self, chance: random.Random) -> Path | None:
        """Folder of an unfinished cell."""
        left = self.unfinished()
        if not left:
            return None
        folder = self.store.work(chance.choice(left))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def workers(self) -> list[int]:
        folder = self.home / "workers"
        pids = [int(file.name) for file in folder.iterdir()] if folder.exists() else []
        return [pid for pid in sorted(pids) if alive(pid)]

    def free_space(self) -> None:
        """Undo the full disk."""
        for file in self.store.root.glob("work/*/*"):
            if file.is_symlink():
                file.unlink()


def cut(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size) if file.stat().st_size else 0)


# --- while no process runs ---


def finished_cell_truncated(victim: Victim, chance: random.Random) -> bool:
    done = victim.finished()
    if not done:
        return False
    cell = chance.choice(done)
    cut(victim.store.path(cell), chance)
    victim.lost.add(victim.store.key(cell))
    return True


def finished_cell_zeroed(victim: Victim, chance: random.Random) -> bool:
    done = victim.finished()
    if not done:
        return False
    cell = chance.choice(done)
    file = victim.store.path(cell)
    with file.open("r+b") as stream:
        stream.seek(chance.randrange(file.stat().st_size // 2))
        stream.write(bytes(64))
    victim.lost.add(victim.store.key(cell))
    return True


def result_half_written(victim: Victim, chance: random.Random) -> bool:
    work = victim.work(chance)
    if work is None or (work / "result.json").exists():
        return False
    (work / "result.json").write_text('{"balance_factor":-0.3,"cell":{"back')
    return True


def checkpoint_half_written(victim: Victim, chance: random.Random) -> bool:
    work = victim.work(chance)
    if work is None:
        return False
    file = work / "checkpoint.ckpt"
    if not file.exists():
        file.write_text(json.dumps([{"epoch": 0, "digest": "f" * 64}]))
    cut(file, chance)
    return True


def error_half_written(victim: Victim, chance: random.Random) -> bool:
    work = victim.work(chance)
    if work is None:
        return False
    (work / "error.json").write_text('{"key": "ab')
    return True


def disk_full_at_result(victim: Victim, chance: random.Random) -> bool:
    work = victim.work(chance)
    if work is None:
        return False
    (work / "result.json").unlink(missing_ok=True)
    (work / "result.json").symlink_to("/dev/full")
    return True


def disk_full_at_checkpoint(victim: Victim, chance: random.Random) -> bool:
    work = victim.work(chance)
    if work is None or (work / "checkpoint.partial").exists():
        return False
    (work / "checkpoint.partial").symlink_to("/dev/full")
    return True


def lease_a_folder(victim: Victim, chance: random.Random) -> bool:
    work = victim.work(chance)
    if work is None or (work / "lease").is_dir():
        return False
    (work / "lease").unlink(missing_ok=True)
    (work / "lease").mkdir()
    (work / "lease" / "file").touch()
    return True


def lease_unreadable(victim: Victim, chance: random.Random) -> bool:
    work = victim.work(chance)
    if work is None or (work / "lease").is_dir():
        return False
    (work / "lease").touch()
    (work / "lease").chmod(0)
    return True


AT_REST: tuple[Fault, ...] = (
    finished_cell_truncated,
    finished_cell_zeroed,
    result_half_written,
    checkpoint_half_written,
    error_half_written,
    disk_full_at_result,
    disk_full_at_checkpoint,
    lease_a_folder,
    lease_unreadable,
)

# --- while processes run ---


def worker_killed(victim: Victim, chance: random.Random) -> bool:
    return _signalled(victim, chance, signal.SIGKILL)


def worker_terminated(victim: Victim, chance: random.Random) -> bool:
    return _signalled(victim, chance, signal.SIGTERM)


def _signalled(victim: Victim, chance: random.Random, number: signal.Signals) -> bool:
    workers = victim.workers()
    if workers:
        os.kill(chance.choice(workers), number)
    return bool(workers)


def lease_overwritten(victim: Victim, chance: random.Random) -> bool:
    leases = [file for file in sorted(victim.store.root.glob("work/*/lease")) if file.is_file()]
    if not leases:
        return False
    try:
        with chance.choice(leases).open("r+b") as stream:
            stream.write(chance.randbytes(40))
    except FileNotFoundError:  # its cell has just been finished
        return False
    return True


def clock_jumped(victim: Victim, chance: random.Random) -> bool:
    """Leases and checkpoints are of ten years ago, or of ten years ahead."""
    files = [*sorted(victim.store.root.glob("work/*/lease")), *sorted(victim.store.root.glob("work/*/checkpoint.ckpt"))]
    jump = chance.choice((-TEN_YEARS, TEN_YEARS))
    hit = False
    for file in files:
        try:
            moment = file.stat().st_mtime + jump
            os.utime(file, (moment, moment))
        except FileNotFoundError:
            continue
        hit = True
    return hit


IN_FLIGHT: tuple[Fault, ...] = (worker_killed, worker_killed, worker_terminated, lease_overwritten, clock_jumped)

ENDINGS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
"""How a driver ends."""
