"""Cells that take some tens of milliseconds and leave what real training leaves, for tests that disturb them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmark import grid, preparation
from benchmark.errors import INTERRUPTED, EquipoiseError
from benchmark.protocol import Cell
from tests.benchmark import fake_cells

EPOCHS = 5
PACE = "TOY_EPOCH_SECONDS"
CLOCK = "TOY_CLOCK_SECONDS"
"""By how much the clock of a worker is wrong."""


def cells(seeds: int) -> list[Cell]:
    return [fake_cells.cell(seed, method) for method in ("joint", "remixing") for seed in range(seeds)]


def resumed(checkpoint: Path) -> list[dict[str, Any]]:
    """The epochs of a checkpoint; a damaged one is dropped, as `fit` does."""
    try:
        found: list[dict[str, Any]] = json.loads(checkpoint.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError:
        checkpoint.unlink()
        return []
    return found


def train(cell: Cell, work: Path) -> dict[str, Any]:
    """Each epoch follows from the one before: a wrong resume changes the result."""
    home = fake_cells.results_home(work).parent
    for folder in ("workers", "guards"):
        (home / folder).mkdir(exist_ok=True)
    (home / "workers" / str(os.getpid())).touch()
    right, wrong = time.time, float(os.environ.get(CLOCK, "0"))
    with (home / "guards" / work.name).open("w") as guard, patch("time.time", lambda: right() + wrong):
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fake_cells.log(work, f"beside-another:{work.name}")
        epochs = resumed(work / "checkpoint.ckpt")
        for epoch in range(len(epochs), EPOCHS):
            time.sleep(float(os.environ[PACE]))
            before = epochs[-1]["digest"] if epochs else cell.describe()
            epochs.append({"epoch": epoch, "digest": hashlib.sha256(f"{before} {epoch}".encode()).hexdigest()})
            (work / "checkpoint.partial").write_text(json.dumps(epochs))
            (work / "checkpoint.partial").replace(work / "checkpoint.ckpt")
        fake_cells.log(work, f"trained:{work.name}")
        return {**fake_cells.record(cell), "epochs": epochs, "provenance": {"finished": time.time()}}


def main() -> int:
    """Run a grid in a process of its own: `python -m tests.benchmark.toy_cells SEEDS JOBS`."""
    seeds, jobs = map(int, sys.argv[1:])
    with patch.object(grid, "check_cell", fake_cells.check_cell), patch.object(preparation, "obtain"):
        try:
            return grid.complete(cells(seeds), "toy", jobs, train=train).exit_status
        except EquipoiseError as error:
            sys.stderr.write(f"Error: {error}\n")
            return error.exit_status
        except KeyboardInterrupt:  # before the first cell; the command line does the same
            return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
