"""`equipoise bench --grid EXPERIMENT`: cells per hour with more and more of them side by side.

Every number of workers trains the same cells from an empty store, the start of the workers included. On a GPU it is
said, too, how busy that was: the mean of what nvidia-smi calls utilisation, the part of the time in which a kernel ran.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import click

from benchmark import grid
from benchmark.errors import CellError
from benchmark.executors.devices import cores, gpus
from benchmark.experiments import load_experiment
from benchmark.preparation import obtain
from benchmark.protocol import Cell
from benchmark.store import Store

_ASK = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop=1")


@dataclass
class Utilisation:
    """How busy GPUs were, in percent, every second; empty without GPUs."""

    percents: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f", GPU busy {statistics.mean(self.percents):.0f}% of the time" if self.percents else ""


@contextmanager
def utilisation() -> Iterator[Utilisation]:
    """Watch the GPUs that may be used; what was seen is there when the context is left."""
    found, names = Utilisation(), [gpu.name for gpu in gpus()]
    if not names or shutil.which(_ASK[0]) is None:
        yield found
        return
    with TemporaryFile("w+") as output:
        watch = subprocess.Popen([*_ASK, f"--id={','.join(names)}"], stdout=output)
        try:
            yield found
        finally:
            watch.terminate()
            watch.wait()
            output.seek(0)
            found.percents += [int(line) for line in output.read().split() if line.isdecimal()]


def cells_per_hour(cells: Sequence[Cell], jobs: int, folder: Path) -> float:
    """Train the cells, `jobs` at a time, into a store in an empty folder; raises CellError where one fails."""
    started = time.monotonic()
    tally = grid.complete(cells, f"{jobs} at a time", jobs, store=Store(folder))
    if tally.exit_status:
        raise CellError(f"{len(tally.failed)} of {tally.total} cells failed with {jobs} at a time: see above.")
    return len(cells) / (time.monotonic() - started) * 3600


def run(experiment: str, methods: Sequence[str] = (), backbones: Sequence[str] = (), jobs: Sequence[int] = ()) -> int:
    """Print the cells per hour of an experiment, or of its named methods, with each number of cells side by side.

    They are trained with the named backbones instead of its own. Raises UsageError for a method that is no row of it.
    """
    declared = load_experiment(experiment)
    if backbones:
        declared = declared.model_copy(update={"backbones": tuple(backbones)})
    grid.refuse_unknown_methods(declared, methods)
    cells = list(declared.cells(tuple(methods)))
    for dataset in declared.datasets:
        obtain(dataset)  # preparing is not measured
    yardstick: float | None = None
    with TemporaryDirectory() as folder:
        for number in jobs or [2**power for power in range(cores().bit_length())]:
            with utilisation() as busy:
                found = cells_per_hour(cells, number, Path(folder, str(number)))
            yardstick = yardstick or found
            click.echo(f"{number:3} side by side: {found:.0f} cells per hour, {found / yardstick:.2f}x{busy}")
    return 0
