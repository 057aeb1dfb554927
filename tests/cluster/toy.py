"""A grid of cells without arithmetic on any executor, in a process of its own that tests may kill.

`python -m tests.cluster.toy EXECUTOR SEEDS JOBS`, with the workspace in `EQUIPOISE_HOME`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmark.errors import INTERRUPTED
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Cell
from benchmark.store import Store
from tests.benchmark import fake_cells
from tests.benchmark.fake_cells import cell, record
from tests.benchmark.processes import alive, wait_until

PATIENCE = 120.0
"""Seconds that a test waits for a cluster on a busy machine."""


def train(cell: Cell, work: Path) -> dict[str, Any]:
    """Note begin and end; in between, wait as long as the workspace has a file `hold`."""
    home = fake_cells.results_home(work).parent
    fake_cells.log(work, f"begun:{cell.seed}:{os.getpid()}:{os.environ.get('SLURMD_NODENAME', '')}")
    time.sleep(0.2)
    while (home / "hold").exists():
        time.sleep(0.05)
    fake_cells.log(work, f"ended:{cell.seed}:{os.getpid()}:")
    return record(cell)


class Driver:
    """A workspace, and the process that fills it."""

    def __init__(self, home: Path, executor: str, seeds: int) -> None:
        self.home, self.executor, self.seeds = home, executor, seeds
        (home / "params.yaml").write_text("experiments: {}\nexecutors: {slurm: {minutes: 30}}\n")
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the driver, once more if need be, in a process group of its own."""
        with (self.home / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.toy", self.executor, str(self.seeds), "2"],
                env={**os.environ, "EQUIPOISE_HOME": str(self.home)},
                cwd=SOURCE_ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self.process

    @property
    def output(self) -> str:
        return (self.home / "output").read_text()

    def hold(self) -> None:
        """Let no cell finish."""
        (self.home / "hold").touch()

    def release(self) -> None:
        """Let all cells finish."""
        (self.home / "hold").unlink()

    def lines(self, kind: str) -> list[list[str]]:
        """Return seed, process and node of the cells that were begun, or ended, in that order."""
        file = self.home / "log"
        found = [line.split(":") for line in file.read_text().split()] if file.exists() else []
        return [fields for first, *fields in found if first == kind]

    def wait_until_begun(self, cells: int) -> list[list[str]]:
        """Wait until so many cells were begun and return them."""
        wait_until(lambda: len(self.lines("begun")) >= cells, PATIENCE)
        return self.lines("begun")

    def finish(self) -> None:
        """Wait for the driver and see that every cell was trained to its end once, and that nothing else is left."""
        assert self.process.wait(PATIENCE) == 0, self.output
        assert sorted(int(seed) for seed, *_ in self.lines("ended")) == list(range(self.seeds)), self.output
        store = Store(self.home / "results")
        assert all(store.read(cell(seed)) is not None for seed in range(self.seeds))
        self.see_nothing_left()

    def interrupt(self) -> None:
        """Press Ctrl-C and see that workers have ended and unfinished business is only that of the cells."""
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(PATIENCE) == INTERRUPTED, self.output
        assert "Traceback" not in self.output
        self.wait_until_workers_ended()

    def wait_until_workers_ended(self) -> None:
        """Wait until no process lives that began a cell."""
        wait_until(lambda: not any(alive(int(pid)) for _, pid, _ in self.lines("begun")), PATIENCE)

    def see_nothing_left(self) -> None:
        """See that the store holds results alone."""
        work = self.home / "results" / "work"
        assert [file for file in work.rglob("*") if file.is_file()] == []

    def kill(self) -> None:
        """Kill the driver and nothing else."""
        self.process.kill()
        self.process.wait()


def main() -> int:
    """Fill the grid; outcomes and jobs are looked at more often than a cluster would like."""
    from benchmark import grid, preparation
    from benchmark.executors import slurm
    from tests.cluster import toy  # by name: workers cannot import what is defined in `__main__`

    # A test run in the background ignores Ctrl-C, and its processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    executor, seeds, jobs = sys.argv[1:]
    cells = [cell(seed) for seed in range(int(seeds))]
    with (
        patch.object(grid, "check_cell", fake_cells.check_cell),
        patch.object(preparation, "obtain"),
        patch.object(slurm, "POLL_SECONDS", 0.2),
        patch.object(slurm, "ASK_SECONDS", 1.0),
    ):
        return grid.complete(cells, "toy", int(jobs), executor=executor, train=toy.train).exit_status


if __name__ == "__main__":
    sys.exit(main())
