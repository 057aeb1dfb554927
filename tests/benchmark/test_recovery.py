"""A grid that is disturbed at random ends with the results of the undisturbed one."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmark.errors import INTERRUPTED
from benchmark.paths import SOURCE_ROOT
from benchmark.store import State
from tests.benchmark import toy_cells
from tests.benchmark.faults import AT_REST, ENDINGS, IN_FLIGHT, TEN_YEARS, Victim, finished_cell_truncated
from tests.benchmark.processes import wait_until

SEEDS = 12
JOBS = 2

ENDED_BESIDES = r"^(KeyboardInterrupt|EOFError|_pickle\.UnpicklingError)"
"""What a driver says that is interrupted while it starts, and a worker that waits for what its killed driver sends."""

Driver = subprocess.Popen[bytes]


def start(home: Path, jobs: int = JOBS, clock: float = 0.0, pace: float = 0.01) -> Driver:
    home.mkdir(exist_ok=True)
    (home / "params.yaml").write_text("experiments: {}\n")
    with (home / "output").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.benchmark.toy_cells", str(SEEDS), str(jobs)],
            env={
                **os.environ,
                "EQUIPOISE_HOME": str(home),
                "PYTHONPATH": str(SOURCE_ROOT),
                toy_cells.CLOCK: str(clock),
                toy_cells.PACE: str(pace),
            },
            cwd=SOURCE_ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def results(victim: Victim) -> dict[str, Any]:
    """What was found, by file, without when."""
    found = {}
    for file in sorted(victim.store.root.glob("cells/**/*.json")):
        record = json.loads(file.read_bytes())
        del record["provenance"]
        found[str(file.relative_to(victim.store.root))] = record
    return found


def finished_files(victim: Victim) -> dict[str, tuple[int, int]]:
    """The file of each finished cell: another one means that the cell was trained again."""
    stats = {victim.store.key(cell): victim.store.path(cell).stat() for cell in victim.finished()}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}


def disturb(victim: Victim, chance: random.Random, applied: Counter[str]) -> None:
    """Damage files, start one driver or two, disturb them while they run, and end them."""
    while len(victim.unfinished()) < SEEDS // 2:
        applied[finished_cell_truncated.__name__] += finished_cell_truncated(victim, chance)
    for fault in chance.sample(AT_REST, chance.randint(1, 4)):
        applied[fault.__name__] += fault(victim, chance)
    clock = chance.choice((0.0, TEN_YEARS, -TEN_YEARS))
    applied["worker_with_a_wrong_clock"] += bool(clock)
    drivers = [start(victim.home, jobs=chance.choice((1, 2)), clock=clock) for _ in range(chance.choice((1, 1, 1, 2)))]
    ready = time.monotonic() + 5
    while time.monotonic() < ready and not victim.workers() and any(driver.poll() is None for driver in drivers):
        time.sleep(0.01)
    for _ in range(chance.randint(1, 4)):
        time.sleep(chance.uniform(0, 0.15))
        fault = chance.choice(IN_FLIGHT)
        applied[fault.__name__] += fault(victim, chance)
    for driver in drivers:
        time.sleep(chance.uniform(0, 0.1))
        if driver.poll() is None:
            ending = chance.choice(ENDINGS)
            driver.send_signal(ending)
            applied[f"driver_{ending.name}"] += 1
        assert driver.wait(30) in {0, 1, INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
    wait_until(lambda: not victim.workers())
    victim.free_space()


def recover(home: Path, faults: int, seed: int) -> Counter[str]:
    """Disturb a grid until it has had so many faults, let it finish, and compare it with an undisturbed one."""
    undisturbed = Victim(home / "undisturbed", toy_cells.cells(SEEDS))
    assert start(undisturbed.home).wait(60) == 0
    chance = random.Random(seed)
    applied: Counter[str] = Counter()
    victim = Victim(home / "disturbed", toy_cells.cells(SEEDS))
    victim.home.mkdir()
    before: dict[str, tuple[int, int]] = {}
    while applied.total() < faults:
        victim.lost.clear()
        disturb(victim, chance, applied)
        after = finished_files(victim)
        assert {key: after.get(key) for key in before.keys() - victim.lost} == {
            key: file for key, file in before.items() if key not in victim.lost
        }, "a finished cell was trained again, or lost"
        before = after

    output = victim.home / "output"
    assert start(victim.home).wait(60) == 0, output.read_text()
    assert results(victim) == results(undisturbed)
    assert [file.name for file in (victim.store.root / "work").iterdir()] in ([], ["set_aside"])
    assert {victim.store.status(cell).state for cell in victim.cells} == {State.DONE}
    assert "beside-another" not in (victim.home / "log").read_text(), "two workers trained one cell at once"
    text = output.read_text()
    assert text.count("Traceback") == len(re.findall(ENDED_BESIDES, text, re.MULTILINE)), text
    return applied


def test_a_grid_recovers_from_a_sample_of_faults(tmp_path: Path) -> None:
    assert recover(tmp_path, faults=15, seed=1).total() >= 15


@pytest.mark.slow
def test_a_grid_recovers_from_hundreds_of_faults_of_every_kind(tmp_path: Path) -> None:
    applied = recover(tmp_path, faults=300, seed=0)
    sys.stdout.write(f"{applied.total()} faults: {dict(applied.most_common())}\n")
    kinds = {fault.__name__ for fault in (*AT_REST, *IN_FLIGHT)} | {f"driver_{ending.name}" for ending in ENDINGS}
    assert {kind for kind in kinds if not applied[kind]} == set()


def trained(victim: Victim) -> Counter[str]:
    """How often each cell was trained to its end."""
    log = victim.home / "log"
    return Counter(log.read_text().split() if log.exists() else ())


def test_a_driver_that_is_killed_is_taken_over_by_the_one_beside_it(tmp_path: Path) -> None:
    victim = Victim(tmp_path / "shared", toy_cells.cells(SEEDS))
    drivers = [start(victim.home, pace=0.05) for _ in range(2)]
    output = victim.home / "output"
    wait_until(lambda: output.read_text().count("cells to train") == 2 and len(trained(victim)) >= 2)
    drivers[0].kill()
    assert drivers[1].wait(60) == 0, output.read_text()
    drivers[0].wait()
    assert {victim.store.status(cell).state for cell in victim.cells} == {State.DONE}
    counts = trained(victim)
    assert counts.keys() == {f"trained:{victim.store.key(cell)}" for cell in victim.cells}
    # A worker of the killed driver may have ended between the training of its cell and the writing of its result.
    assert counts.total() <= len(victim.cells) + JOBS
    assert not list((victim.store.root / "work").iterdir())
