"""How far a count has come, on standard error: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

FIRST, LONGEST = 2.0, 60.0
"""Seconds until the first plain line, and the most between two: each takes twice as long as the one before."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Show how many a second were done of late."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextmanager
def console_counts(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Give a callback for what is counted, how many are done and how many there are.

    Of several counts, one is done after the other. What was done at its first call is not part of a count's rate.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn())
    with ExitStack() as stack:
        shown: dict[str, tuple[Bars, TaskID]] = {}

        def draw(name: str, done: int, total: int) -> None:
            if name not in shown:
                # Lines that are printed meanwhile go where they were sent, which may be a file.
                bars = Bars(
                    *columns, TimeRemainingColumn(), console=console, redirect_stdout=False, redirect_stderr=False
                )
                shown[name] = stack.enter_context(bars), bars.add_task(name, total=total, completed=done)
            bars, task = shown[name]
            bars.update(task, completed=done)
            if done == total:
                bars.stop()

        yield draw


def _plain_lines(console: Console) -> Callable[[str, int, int], None]:
    started: dict[str, tuple[float, int]] = {}
    pause = FIRST
    due = time.monotonic() + pause

    def show(name: str, done: int, total: int) -> None:
        nonlocal pause, due
        now = time.monotonic()
        since, before = started.setdefault(name, (now, done))
        if now < due or done in (before, total):
            return
        pause = min(2 * pause, LONGEST)
        due = now + pause
        rate = (done - before) / (now - since)
        left = timedelta(seconds=round((total - done) / rate))
        console.print(
            f"{name}: {done} of {total}, {rate:.1f} a second, {left} left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    return show
