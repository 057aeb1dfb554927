"""The promise of the README on this machine: one command, a fresh clone, tables, in minutes, the same every time."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.experiments import load_experiment
from benchmark.paths import SOURCE_ROOT
from tests.benchmark.workspace import trained

pytestmark = pytest.mark.slow

EMBEDDED = ("digits", "digits_dg")
REPRO_SECONDS = 1080
NOTHING_TO_DO_SECONDS = 10
REMEMBERING = ("agm", "diagnosing_relearning", "imcl", "lfm", "mla", "pmr", "reconboost", "rgm")
"""Methods that keep something from step to step or from epoch to epoch."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the committed tree, run with this environment."""
    folder = tmp_path_factory.mktemp("clone") / "equipoise"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(SOURCE_ROOT), str(folder)], check=True)
    return folder


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `python -m ...` in the clone, on the clone's own sources, with `equipoise` and `dvc` on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[str, float]:
    started = time.perf_counter()
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output, time.perf_counter() - started


@pytest.fixture(scope="module")
def reproduced(clone: Path) -> tuple[str, float]:
    return finished(command(clone, "dvc", "repro"))


def test_a_fresh_clone_trains_and_prints_the_tables_in_minutes(reproduced: tuple[str, float], clone: Path) -> None:
    output, seconds = reproduced
    sys.stdout.write(f"dvc repro from a clean clone: {seconds:.0f} s, limit {REPRO_SECONDS} s\n")
    for name in EMBEDDED:
        cells = len(list(load_experiment(name).cells()))
        assert f"{name}: {cells} cells: 0 finished before, {cells} finished now, 0 failed" in output
        assert (clone / f"results/tables/{name}.md").read_text().splitlines()[0] in output
    assert seconds < REPRO_SECONDS


@pytest.mark.usefixtures("reproduced")
@pytest.mark.parametrize("name", EMBEDDED)
def test_the_fresh_table_agrees_with_the_committed_reference(name: str, clone: Path) -> None:
    comparison = (clone / f"results/tables/{name}_reference.md").read_text()
    sys.stdout.write(comparison)
    counts = re.search(r"(\d+) identical, (\d+) within seed noise, (\d+) different", comparison)
    assert counts is not None
    assert int(counts[1]) + int(counts[2]) > 0
    assert counts[3] == "0"


@pytest.mark.timing
@pytest.mark.usefixtures("reproduced")
def test_a_second_repro_does_nothing_and_says_so(clone: Path) -> None:
    output, seconds = finished(command(clone, "dvc", "repro"))
    sys.stdout.write(f"dvc repro with nothing to do: {seconds:.1f} s, limit {NOTHING_TO_DO_SECONDS} s\n")
    assert "up to date" in output
    assert seconds < NOTHING_TO_DO_SECONDS


@pytest.mark.usefixtures("reproduced")
def test_a_grid_killed_at_random_ends_with_the_bits_of_an_undisturbed_one(clone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "equipoise"
    subprocess.run(["git", "clone", "--quiet", str(clone), str(folder)], check=True)
    grid = ("benchmark", "grid", "digits", *(f"--method={method}" for method in REMEMBERING))
    chance = random.Random(0)
    kills = 0
    for _ in range(4):
        process = command(folder, *grid)
        try:
            process.communicate(timeout=chance.uniform(8, 25))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    assert kills > 0
    finished(command(folder, *grid))
    for method in REMEMBERING:
        disturbed, undisturbed = (
            trained(f.glob(f"results/cells/digits/*/{method}/**/*.json")) for f in (folder, clone)
        )
        assert len(undisturbed) == 5
        assert disturbed == undisturbed
    assert not list(folder.glob("results/work/*"))
