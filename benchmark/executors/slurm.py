"""Bundles of tasks as job arrays of SLURM, submitted through submitit."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from benchmark.errors import UsageError
from benchmark.executors import Outcome, Outcomes, bundle, settings
from benchmark.executors.bundle import Bundle, Spool
from benchmark.executors.pool import RETRIES, Died
from benchmark.executors.worker import environment
from benchmark.paths import results_home

T = TypeVar("T")
R = TypeVar("R")

NAME = "equipoise-"
"""What the name of every array starts with."""

POLL_SECONDS = 1.0
"""How often the driver looks for outcomes."""

ASK_SECONDS = 15.0
"""How often it asks SLURM which jobs there are."""

END_SECONDS = 10.0
"""How long it waits for jobs without work to end before it cancels them."""

STOP_SECONDS = 40.0
"""How long it waits for cancelled jobs to end: SLURM gives them half a minute by default."""

SHARES = 4
"""Array tasks per job that runs at once: fewer leave the last ones to be waited for, more start more processes."""

MOST = 1000
"""Tasks of one array; SLURM's default limit is 1001."""


def run(function: Callable[[T], R], tasks: Sequence[T], *, jobs: int | None = None) -> Outcomes[T, R]:
    """Call `function` on every task in array tasks of SLURM, `jobs` at a time, and yield the outcomes as they come.

    `jobs` None is one per GPU of the partition, or per core where it has none. An array task runs its bundle in warm
    workers and is queued again with what is left at its time limit, when it is preempted and when its node fails; one
    that is lost otherwise is replaced. Closing the generator cancels the array; when this process is killed the array
    goes on. Raises UsageError without SLURM or when it refuses the job.
    """
    home = results_home() / "work" / "slurm"
    queue = Queue(home, settings.slurm(), jobs)
    _sweep(home)
    return _run(function, tasks, queue)


def _run(function: Callable[[T], R], tasks: Sequence[T], queue: Queue) -> Outcomes[T, R]:
    spool, submit = queue.spool, list(range(len(tasks)))
    left, held, tries = set(submit), dict[str, list[int]](), Counter[int]()
    with spool.opened():
        try:
            while left:
                if submit:
                    held |= queue.submit(function, tasks, submit)
                    submit = []
                gone = queue.gone(held)
                for number in sorted(spool.finished(left)):
                    left.remove(number)
                    yield Outcome(tasks[number], spool.take(number))
                for job in gone:
                    lost = [number for number in held.pop(job) if number in left]
                    suspects = spool.suspects(lost)
                    tries.update(suspects)
                    submit += [number for number in lost if tries[number] <= RETRIES]
                    for number in suspects:
                        if tries[number] > RETRIES:
                            spool.put(number, queue.died(job).failure(tries[number]))
                if left and not submit:
                    time.sleep(POLL_SECONDS)
        finally:
            queue.end(finished=not left)


def _sweep(home: Path) -> None:
    """Remove what killed drivers left, where their jobs have ended too."""
    for jobs in home.glob("*/jobs"):
        spool = Spool(jobs.parent)
        with spool.lease() as free:
            if free and _present(NAME + spool.folder.name) == set():
                spool.remove()


class Queue:
    """The job arrays of one driver, known to SLURM by a name of their own."""

    def __init__(self, home: Path, wanted: settings.Slurm, jobs: int | None) -> None:
        if shutil.which("sbatch") is None:
            raise UsageError("Executor 'slurm' finds no `sbatch`. Run on a machine from which jobs can be submitted.")
        self._wanted = wanted
        cores, gpus = self._capacity()
        self._gpus = min(1, gpus) if wanted.gpus is None else wanted.gpus
        places = gpus // self._gpus if self._gpus else cores // wanted.cells
        self._jobs = max(1, jobs // wanted.cells if jobs else places)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.name, self.spool = NAME + stamp, Spool(home / stamp)
        self._asked = time.monotonic()
        self._absent: set[str] = set()

    def _capacity(self) -> tuple[int, int]:
        partition = self._wanted.sbatch.get("partition")
        chosen = [f"--partition={partition}"] if partition else []
        return capacity(_call("sinfo", "--noheader", "--format=%D %c %G", *chosen))

    def submit(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], numbers: Sequence[int]
    ) -> dict[str, list[int]]:
        """Submit the tasks with these numbers as one array and return which job holds which."""
        held = list(bundle.bundles(numbers, self._jobs, SHARES, MOST))
        submitit = importlib.import_module("submitit")
        # A long cell may be stopped by several time limits: it goes on from its checkpoint.
        executor = submitit.SlurmExecutor(self.spool.jobs, max_num_timeout=len(held[0]) + RETRIES)
        executor.update_parameters(**self._parameters())
        call = Bundle(self.spool, function, self._wanted.cells)
        try:
            jobs = executor.map_array(call, [[(number, tasks[number]) for number in chosen] for chosen in held])
        except submitit.core.utils.FailedJobError as error:
            raise UsageError(
                f"SLURM refused the jobs: {' '.join(str(error).split())} Correct `executors: slurm:` in params.yaml."
            ) from None
        return {job.job_id: chosen for job, chosen in zip(jobs, held, strict=True)}

    def _parameters(self) -> dict[str, Any]:
        exports = [f"export {name}={shlex.quote(value)}" for name, value in environment().items()]
        cores = self._wanted.cells
        return {
            "job_name": self.name,
            "time": self._wanted.minutes,
            "cpus_per_task": cores,
            "srun_args": [f"--cpus-per-task={cores}"],  # since 22.05 a step does not inherit it
            "array_parallelism": self._jobs,
            "setup": [*self._wanted.setup, *exports],
            **({"gpus_per_node": self._gpus} if self._gpus else {}),
            "additional_parameters": {"requeue": True, **self._wanted.sbatch},
        }

    def gone(self, held: Collection[str]) -> list[str]:
        """Return which of the jobs SLURM no longer has, asked now and then.

        A job is gone when it was absent twice: its last outcomes may take a while to be seen through a network.
        """
        if time.monotonic() - self._asked < ASK_SECONDS:
            return []
        self._asked = time.monotonic()
        present = _present(self.name)
        if present is None:
            return []
        absent = {*held} - present
        gone, self._absent = absent & self._absent, absent
        return sorted(gone)

    def died(self, job: str) -> Died:
        """Return how a job that is gone ended: the last lines that it printed."""
        log = self.spool.jobs / f"{job}_0_log.err"
        lines = log.read_text(errors="replace").splitlines()[-20:] if log.exists() else []
        return Died(f"its SLURM job {job}", "\n".join(lines))

    def end(self, finished: bool) -> None:
        """Cancel what is left and wait until it has ended; jobs that have nothing to do end by themselves."""
        if finished:
            self._wait(END_SECONDS)
        subprocess.run(["scancel", f"--name={self.name}"], check=False, capture_output=True)
        self._wait(STOP_SECONDS)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while _present(self.name) and time.monotonic() < end:
            time.sleep(POLL_SECONDS / 2)


def _present(name: str) -> set[str] | None:
    """Return the jobs of that name that wait, run or end, None when SLURM does not answer."""
    asked = ("squeue", "--noheader", "--array", f"--name={name}", "--format=%i")
    found = subprocess.run(asked, check=False, capture_output=True, text=True)
    return {*found.stdout.split()} if found.returncode == 0 else None


def capacity(listing: str) -> tuple[int, int]:
    """Return the cores and GPUs of a partition from lines of `nodes cores gres`, such as `4 64 gpu:a100:4(S:0-1)`."""
    cores = gpus = 0
    for line in listing.splitlines():
        nodes, each, resources = line.split(maxsplit=2)
        cores += int(nodes) * int(each.rstrip("+"))
        gpus += int(nodes) * sum(int(count) for count in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", resources))
    return cores, gpus


def _call(*command: str) -> str:
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    if found.returncode:
        raise UsageError(f"SLURM does not answer: `{shlex.join(command)}` says {' '.join(found.stderr.split())!r}.")
    return found.stdout
