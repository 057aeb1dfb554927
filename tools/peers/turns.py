"""Both ends of a pipe: a process trains one epoch whenever it is told to, and answers with what that took.

The peers' own environments import this, so it needs nothing but torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import torch

T = TypeVar("T")
Answer = Mapping[str, Any]


def moment() -> float:
    """Return seconds: CPU time of this process, which other people's load hardly moves; with CUDA, time on the wall."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def clock() -> float:
    """Return `moment` once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return moment()


class EndedError(Exception):
    """A process ended before its turns did."""

    exit_status = 1


class Turns:
    """The process's end. What it prints goes to its errors, so that nothing but answers is on the pipe."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        # In the order in which it is printed: what it dies of comes last.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def wait(self) -> None:
        """Return when the next turn begins; leave the process where there is none."""
        if not sys.stdin.readline():
            raise SystemExit(0)

    def tell(self, **answer: float | str) -> None:
        """Answer the question that was asked last."""
        self._answers.write(json.dumps(answer) + "\n")


class Watch:
    """What an epoch's input takes, and how many clips it has; the first epoch warms up with a single batch."""

    def __init__(self) -> None:
        self.seconds, self.clips, self.epochs = 0.0, 0, 0

    def timed(self, batches: Iterable[T], count: Callable[[T], int]) -> Iterator[T]:
        """Yield the batches, and count the time that the loop waits for each of them."""
        started = moment()
        for batch in batches:
            self.seconds += moment() - started
            self.clips += count(batch)
            yield batch
            if not self.epochs:
                return
            started = moment()
        self.seconds += moment() - started

    def epoch(self, train: Callable[[], T]) -> tuple[T, Answer]:
        """Train for an epoch; return what that returns, and seconds in all and of input, and clips."""
        self.seconds, self.clips = 0.0, 0
        started = clock()
        result = train()
        answer = {"epoch": clock() - started, "input": self.seconds, "clips": self.clips}
        self.epochs += 1
        return result, answer


class Contestant:
    """Our end: a process with one thread, started in `folder`; `log` keeps what it prints."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, log: Path, **variables: str) -> None:
        self.name, self.command, self.folder, self.log = name, command, folder, log
        self.variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **variables}
        self.hello: Answer = {}

    def __enter__(self) -> Contestant:
        with self.log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, **self.variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.hello = self._answer()
        return self

    def turn(self) -> Answer:
        """Have one turn; raises EndedError with the last line that was printed where the process has ended."""
        self._pipe(self.process.stdin).write("go\n")
        self._pipe(self.process.stdin).flush()
        return self._answer()

    def _answer(self) -> Answer:
        line = self._pipe(self.process.stdout).readline()
        if not line:
            self.process.wait()  # its end of the pipe is closed before it says why
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = said[-1] if said else "it said nothing"
            raise EndedError(f"{self.name} ended: {last}. All of it is in {self.log}.")
        answer: Answer = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None, "both are pipes"
        return pipe

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe(self.process.stdin).close()
        if error is not None:
            self.process.kill()
        self.process.wait()
        self._pipe(self.process.stdout).close()
