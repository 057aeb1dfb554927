"""Warm workers in a Ray cluster: the one that is running, or one on this machine for as long as there are tasks."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from benchmark.errors import UsageError
from benchmark.executors import Outcomes, pool
from benchmark.executors.pool import Died
from benchmark.executors.worker import answer, environment

T = TypeVar("T")
R = TypeVar("R")

JOBS_PER_GPU = 4
"""Tasks side by side on a GPU unless the caller says how many: Ray does not know how much memory its GPUs have."""


def run(function: Callable[[T], R], tasks: Sequence[T], *, jobs: int | None = None) -> Outcomes[T, R]:
    """Call `function` on every task in `jobs` actors of one core each and yield the outcomes as they come.

    The cluster is the one that `RAY_ADDRESS` names or that runs on this machine, otherwise a new one. Where it has
    GPUs, each actor has a part of one, such that `jobs` of them run at once. An actor that is lost, with its node or
    alone, is replaced on whatever node has room. When the generator is closed, or this process killed, they end. Raises
    UsageError when nothing answers at `RAY_ADDRESS`.
    """
    # Never at the top: the package is an extra, and listing executors must stay instant.
    ray = importlib.import_module("ray")
    with _connected(ray):
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        jobs = min(jobs or default_jobs(cpus, gpus), len(tasks))
        options = {"num_cpus": 1, "num_gpus": share(jobs, gpus), "runtime_env": {"env_vars": environment()}}
        start = ray.remote(_Actor).options(**options)
        pickled = pickle.dumps(function)
        workers = [_Worker(ray, start, pickled) for _ in range(jobs)]

        def ready(busy: Collection[_Worker]) -> list[_Worker]:
            owner = {worker.promise: worker for worker in busy}
            return [owner[promise] for promise in ray.wait(list(owner), num_returns=1)[0]]

        yield from pool.serve(tasks, workers, ready, least=max(1, gpus))


def default_jobs(cpus: int, gpus: int) -> int:
    """Return how many actors a cluster holds: one per core, and `JOBS_PER_GPU` per GPU where there are any."""
    return min(cpus, gpus * JOBS_PER_GPU) if gpus else cpus


def share(jobs: int, gpus: int) -> float:
    """Return the part of a GPU for each of `jobs` actors, as no actor has parts of two; 0 without GPUs."""
    if not (jobs and gpus):
        return 0
    # Ray counts in ten-thousandths.
    return math.floor(10_000 / math.ceil(jobs / gpus)) / 10_000


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connect to the running cluster or start one, unless the caller is connected already."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark does not call home
    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    address = os.environ.get("RAY_ADDRESS", "auto")
    if not _answers(address):  # Ray itself would try for many minutes
        raise UsageError(f"No Ray cluster answers at RAY_ADDRESS={address}. Start it, or unset the variable.")
    try:
        ray.init(address=address, **quiet)
    except ConnectionError:
        if address != "auto":
            raise
        ray.init(address="local", include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> bool:
    """Return whether something listens there; of an address without a port, such as `auto`, Ray decides."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdecimal():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


class _Actor:
    """A worker process of the cluster."""

    def __init__(self, function: bytes) -> None:
        self._function = function

    def answer(self, task: object) -> bytes:
        """Return the task's value or Failure, pickled."""
        return answer(self._function, task)


class _Worker:
    """An actor, and the task it has."""

    def __init__(self, ray: Any, start: Any, function: bytes) -> None:
        self._ray, self._start, self._function = ray, start, function
        self._actor: Any = None
        self.promise: Any = None

    def send(self, task: object) -> None:
        if self._actor is None:
            self._actor = self._start.remote(self._function)
        self.promise = self._actor.answer.remote(task)

    def answer(self) -> Any:
        try:
            return pickle.loads(self._ray.get(self.promise))
        except self._ray.exceptions.RayError as error:
            return Died(type(error).__name__, str(error))

    def terminate(self) -> None:
        self.stop()

    def stop(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None
