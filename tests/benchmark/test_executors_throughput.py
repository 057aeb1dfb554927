"""Cells per hour of the local executor on the embedded benchmark."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmark import grid
from benchmark.executors.devices import cores
from benchmark.experiments import load_experiment
from benchmark.preparation import obtain
from benchmark.store import Store

SEEDS = 2
ROUNDS = 2


def cells_per_hour(folder: Path, jobs: int) -> float:
    """Train some seeds of every row of the grid `digits`, the start of the workers included."""
    cells = [cell for cell in load_experiment("digits").cells() if cell.seed < SEEDS]
    started = time.monotonic()
    assert grid.complete(cells, f"{jobs} at a time", jobs, store=Store(folder)).exit_status == 0
    return len(cells) / (time.monotonic() - started) * 3600


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="one core: nothing to run side by side")
def test_two_workers_finish_at_least_1_8_times_the_cells_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path / "data"))
    obtain("digits")
    found: dict[int, float] = {1: 0.0, 2: 0.0}
    for number in range(ROUNDS):
        # The best of each: what else the machine does slows either.
        for jobs in found:
            found[jobs] = max(found[jobs], cells_per_hour(tmp_path / f"{number}-{jobs}", jobs))
        gain = found[2] / found[1]
        if gain >= 1.8:
            break
    sys.stdout.write(f"cells per hour: {found[1]:.0f} with one worker, {found[2]:.0f} with two, {gain:.2f} times\n")
    assert gain >= 1.8
