"""Cells without arithmetic: what the tests of store, grid and pipeline train instead of a model.

The whole file also stands in for `benchmark/run.py` in a scratch copy of the project (tests/test_pipeline.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmark.errors import CellError
from benchmark.protocol import Cell, Protocol


def cell(seed: int = 0, method: str = "joint", **options: Any) -> Cell:
    return Cell(
        dataset="digits",
        backbone="small",
        fusion="concat",
        method=method,
        options=options,
        protocol=Protocol(epochs=1),
        seed=seed,
    )


def record(cell: Cell) -> dict[str, Any]:
    """The same numbers for the same cell, different ones for another."""
    number = int(hashlib.sha256(repr((cell.method, cell.options, cell.seed)).encode()).hexdigest()[:6], 16) / 16**6
    metrics = {
        "accuracy": 0.8 + 0.1 * number,
        "macro_f1": 0.8,
        "loss": 1.0,
        "unimodal": {"upper": 0.5, "lower": 0.6},
        "missing": {"upper": 0.6, "lower": 0.5},
    }
    epoch = {"epoch": 0, "lr": 0.1, "loss": 1.0, "val": metrics, "test": metrics, "notes": {}}
    epoch["cosine"] = {"mean": 0.1, "q10": 0.0, "q50": 0.1, "q90": 0.2}
    epoch["plane"] = [[1.0, -0.3, 0.1]]
    graded = {"noise": [0.7, 0.6, 0.5], "blur": [0.7, 0.6, 0.5], "dropout": [0.7, 0.6, 0.5]}
    found = {"accuracy": metrics["accuracy"], "ece": 0.1, "auroc": 0.8, "aurc": 0.05, "fpr95": 0.6}
    final = {**found, "corrupted": {"upper": graded, "lower": graded}}
    return {
        "options": {},
        "protocol": cell.protocol.model_dump(mode="json"),
        "modalities": ["upper", "lower"],
        "classes": 10,
        "epochs": [{**epoch, "energy": {"upper": 1.0, "lower": 2.0}, "balance_factor": -0.3}],
        "final": {"best_val": final, "last": final},
        "balance_factor": -0.3 - 0.01 * number,
        "steps": 3,
        "cost": {"forward": 1.0, "backward": 1.0, "relative": 1.0, "seconds": 0.1, "peak_memory_bytes": 1},
        "provenance": {
            "commit": "0" * 40,
            "dirty": False,
            "versions": {"python": "3"},
            "device": "cpu: fake",
        },
    }


def check_cell(cell: Cell) -> None:
    """Nothing can be wrong with these."""


def weights(backbone: str, name: str, shape: tuple[int, ...]) -> None:
    """Nothing starts from published weights."""


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:  # noqa: ARG001 - called like the real one
    return record(cell)


def results_home(work: Path) -> Path:
    return work.parent.parent


def log(work: Path, line: object) -> None:
    """Append to a file that all workers share."""
    with (results_home(work).parent / "log").open("a") as stream:
        stream.write(f"{line}\n")


def run_slowly(cell: Cell, work: Path) -> dict[str, Any]:
    log(work, os.getpid())
    (work / "checkpoint.ckpt").write_bytes(b"half a cell")
    time.sleep(0.1)
    return record(cell)


def run_for_ever(cell: Cell, work: Path) -> dict[str, Any]:
    log(work, os.getpid())
    if cell.seed == 0:
        return record(cell)
    time.sleep(600)
    return {}


def fail_on_seed_1(cell: Cell, work: Path) -> dict[str, Any]:
    log(work, work.name)
    if cell.seed == 1:
        raise CellError(f"{cell.describe()}: Training loss became nan.\nA second line.")
    return record(cell)


def die_on_seed_1(cell: Cell, work: Path) -> dict[str, Any]:
    log(work, work.name)
    if cell.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(cell)


def die_once(cell: Cell, work: Path) -> dict[str, Any]:
    if cell.seed == 1 and not (work / "checkpoint.ckpt").exists():
        (work / "checkpoint.ckpt").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return record(cell)


def fill_disk_on_seed_1(cell: Cell, work: Path) -> dict[str, Any]:
    if cell.seed == 1:
        raise OSError(errno.ENOSPC, "No space left on device", str(work / "checkpoint.ckpt"))
    return record(cell)


def not_finite(cell: Cell, work: Path) -> dict[str, Any]:  # noqa: ARG001
    return {**record(cell), "balance_factor": float("nan")}


def main() -> int:
    """Run a grid in a process of its own: `python -m tests.benchmark.fake_cells FUNCTION SEEDS JOBS`."""
    from benchmark import grid, preparation

    # A test run in the background ignores Ctrl-C, and its processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function, seeds, jobs = sys.argv[1:]
    cells = [cell(seed, method) for method in ("joint", "remixing") for seed in range(int(seeds))]
    train = getattr(sys.modules[__name__], function)
    with patch.object(grid, "check_cell", check_cell), patch.object(preparation, "obtain"):
        return grid.complete(cells, "fake", int(jobs), train=train).exit_status


if __name__ == "__main__":
    sys.exit(main())
