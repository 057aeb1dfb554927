"""What a grid of two thousand finished cells costs to look at."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmark.experiments import load_experiment
from benchmark.paths import SOURCE_ROOT
from benchmark.store import Store
from tests.benchmark import fake_cells

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc"),
]

CELLS = 2000
EPOCHS = 50
"""So that a file is about as large as one of the embedded benchmark."""

MEMORY_BYTES = 500e6
SECONDS = {"grid": 3.0, "status": 2.0}
METHODS = ("joint", "ogm_ge", "agm", "pmr", "mla", "pcgrad", "gradnorm", "mmpareto", "rgm", "gmp")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    experiment = {
        "title": "Many",
        "datasets": ["digits"],
        "backbones": ["small"],
        "seeds": CELLS // len(METHODS),
        "protocol": {"epochs": EPOCHS},
        "baselines": dict.fromkeys(METHODS[:-2]),
        "proposed": dict.fromkeys(METHODS[-2:]),
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"experiments": {"many": experiment}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_HOME", str(folder))
        patch.setattr("benchmark.store.os.fsync", lambda _descriptor: None)
        store = Store()
        for cell in load_experiment("many").cells():
            found = fake_cells.record(cell)
            store.write(cell, {**found, "epochs": found["epochs"] * EPOCHS})
    assert len(list(folder.glob("results/cells/**/*.json"))) == CELLS
    return folder


def cost(home: Path, command: str) -> tuple[str, float, float]:
    """Output, processor seconds, which do not depend on what else runs, and bytes of memory at most."""
    child = (
        "import sys; from pathlib import Path; from benchmark.cli import main; status = main(sys.argv[1:])\n"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]\n"
        "sys.stderr.write(peak); sys.exit(status)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", child, command, "many"],
        env={**os.environ, "EQUIPOISE_HOME": str(home), "PYTHONPATH": str(SOURCE_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    memory = 1024 * int(done.stderr.rpartition("\n")[2])
    sys.stdout.write(
        f"{command} of {CELLS} finished cells: {seconds:.2f} s of processor, {wall:.2f} s, {memory / 1e6:.0f} MB\n"
    )
    return done.stdout, seconds, memory


@pytest.mark.timing
@pytest.mark.parametrize(
    ("command", "answer"), [("grid", f"all {CELLS} cells are finished"), ("status", f"  {CELLS} ")]
)
def test_two_thousand_finished_cells_are_looked_at_in_seconds(home: Path, command: str, answer: str) -> None:
    output, seconds, memory = cost(home, command)
    assert answer in output
    assert seconds < SECONDS[command]
    assert memory < MEMORY_BYTES


def test_one_truncated_file_among_them_is_found(home: Path) -> None:
    file = next(home.glob("results/cells/digits/small/rgm/*.json"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(subprocess.CalledProcessError) as raised:
        cost(home, "status")
    assert f"Result {file} is truncated or corrupt" in raised.value.stdout
    file.write_bytes(whole)
