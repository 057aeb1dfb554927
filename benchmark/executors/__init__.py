"""Where tasks run: an executor is one function that yields unordered outcomes.

The callers know neither processes nor queues; another place to run is another module here and one line in
`EXECUTORS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from benchmark.errors import UsageError, unknown_name

T = TypeVar("T")
R = TypeVar("R")

EXECUTORS = {
    "local": "benchmark.executors.local:run",
    "slurm": "benchmark.executors.slurm:run",
    "ray": "benchmark.executors.ray:run",
}

PACKAGES = {"slurm": "submitit", "ray": "ray"}
"""What an executor needs beyond the suite; the extra that installs it is named like the executor."""


@dataclass(frozen=True)
class Failure:
    """Why a task has no value: the exception's class name or `WorkerDied`, its message, its traceback."""

    kind: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """A task with what the function returned, or with its failure."""

    task: T
    result: R | Failure


Outcomes: TypeAlias = Generator[Outcome[T, R], None, None]


class Executor(Protocol):
    """Calls `function` on every task, at most `jobs` at a time, and yields outcomes as they come.

    `function` and the tasks are picklable, and importable by name where the workers run. `jobs` None is what the
    executor's devices hold. Closing the generator stops what is running; a process that dies, or a node, fails its
    own task and no other, after it was tried again.
    """

    def __call__(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], *, jobs: int | None = None
    ) -> Outcomes[Any, Any]:
        """Start the generator; raises UsageError where the executor cannot run here."""


def load(name: str) -> Executor:
    """Return the executor of that name; raises UsageError for an unknown one, or without the package it needs."""
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise UsageError(
            f"Executor {name!r} needs the package {package}, which is not installed: `pip install equipoise[{name}]`."
        )
    module, _, attr = EXECUTORS[name].partition(":")
    return cast("Executor", getattr(importlib.import_module(module), attr))
