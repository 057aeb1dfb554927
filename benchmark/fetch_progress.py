"""How far a fetch is: bytes, files, rate and time left, as bars on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import (
    Progress as ProgressBars,
)

from benchmark.download import Progress

LARGE = 64 * 2**20
"""Bytes from which a file has a bar of its own, and from which fewer are fetched at once."""

UPDATE_SECONDS, LINE_SECONDS = 0.2, 2.0


@contextmanager
def console_progress(console: Console | None = None) -> Iterator[Progress]:
    """Give a progress callback: one bar for all files and one per large file under way, or a line every two seconds."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with ProgressBars(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, get_time=time.monotonic
    ) as bars:
        display = _Display(bars)
        yield display
        display.update()


class _Display:
    """Adds up what the files report. What was there when a file was first reported is not part of the rate."""

    def __init__(self, bars: ProgressBars) -> None:
        self._bars = bars
        self._files: dict[str, tuple[int, int | None]] = {}
        self._large: dict[str, TaskID] = {}
        self._moved: set[str] = set()
        self._all: TaskID | None = None
        self._updated = self._written = time.monotonic()
        self._lock = Lock()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Take a report, as `Progress` has it."""
        with self._lock:
            if name in self._files:
                self._moved.add(name)
                # The rate is measured from the first report that brings something.
                if self._all is None:
                    there = sum(done for done, _ in self._files.values())
                    self._all = self._bars.add_task("", total=None, completed=there)
            self._files[name] = (done, total)
            now = time.monotonic()
            if now - self._updated >= UPDATE_SECONDS:
                self._updated = now
                self.update()
                if self._bars.disable and now - self._written >= LINE_SECONDS:
                    self._written = now
                    self._write()

    def update(self) -> None:
        """Move the bars to what was reported so far."""
        if self._all is None:
            return
        done = sum(done for done, _ in self._files.values())
        known = [total for _, total in self._files.values() if total is not None]
        total = sum(known) if len(known) == len(self._files) else None
        self._bars.update(self._all, description=self._label(), completed=done, total=total)
        if len(self._files) > 1:
            self._update_large()
        self._moved.clear()

    def _label(self) -> str:
        finished = sum(done == total for done, total in self._files.values())
        return next(iter(self._files)) if len(self._files) == 1 else f"{finished:,} of {len(self._files):,} files"

    def _update_large(self) -> None:
        for name in self._moved:
            done, total = self._files[name]
            if done == total and name in self._large:
                self._bars.remove_task(self._large.pop(name))
            elif done != total and (total is None or total >= LARGE):
                if name not in self._large:
                    self._large[name] = self._bars.add_task(name, total=total, completed=done)
                self._bars.update(self._large[name], completed=done, total=total)

    def _write(self) -> None:
        task = next((task for task in self._bars.tasks if task.id == self._all), None)
        if task is None:
            return
        of = f" of {task.total / 1e6:.1f}" if task.total is not None else ""
        rate = f", {decimal(int(task.speed))}/s" if task.speed else ""
        seconds = task.time_remaining
        left = f", {timedelta(seconds=round(seconds))} left" if seconds is not None else ""
        text = f"{task.description}: {task.completed / 1e6:.1f}{of} MB{rate}{left}"
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
