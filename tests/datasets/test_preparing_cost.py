from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark.paths import SOURCE_ROOT
from tests.datasets.many import write_many
from tests.datasets.measured import preparing


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    found = []
    for count in (48, 192):
        home = tmp_path / str(count)
        lookalike = write_many(home / "raw" / "cremad", count, published_size=False)
        memory = preparing(lookalike, home, jobs=2).memory
        stored = sum(file.stat().st_size for file in (home / "prepared" / "cremad").glob("*.npy"))
        sys.stdout.write(f"{count} clips, {stored / 2**20:.0f} MiB of arrays: at most {memory / 2**20:.0f} MiB\n")
        found.append((stored, memory))
    (less, before), (more, after) = found
    assert after - before < 0.3 * (more - less)


@pytest.mark.timing
def test_preparing_takes_a_third_of_the_time_per_core_of_a_file_at_a_time(tmp_path: Path) -> None:
    few, many = 48, 240
    homes = {count: tmp_path / str(count) for count in (few, many)}
    lookalikes = {n: write_many(home / "raw" / "cremad", n, published_size=True) for n, home in homes.items()}
    command = [sys.executable, "-m", "tests.datasets.per_file", str(lookalikes[many].folder), str(tmp_path / "files")]
    usual = json.loads(subprocess.run(command, cwd=SOURCE_ROOT, stdout=subprocess.PIPE, check=True).stdout)
    cpu = {count: preparing(lookalikes[count], home, jobs=2).cpu for count, home in homes.items()}
    # Neither the start of these processes nor that of the other's is counted.
    seconds = (cpu[many] - cpu[few]) / (many - few)
    ratio = usual["cpu"] / many / seconds
    sys.stdout.write(
        f"{1 / seconds:.0f} clips per second and core, or {many / cpu[many]:.0f} of {many} with the start of all "
        f"processes; {many / usual['cpu']:.0f} by {usual['tools']}, a file at a time: {ratio:.1f} times as many\n"
    )
    with np.load(tmp_path / "files" / "arrays.npz") as expected:
        for modality, tolerance in (("video", 6.0), ("audio", 0.1)):
            found = np.load(homes[many] / "prepared" / "cremad" / f"{modality}.npy", mmap_mode="r")
            off = np.abs(found.astype(np.float32) - expected[modality]).reshape(many, -1).mean(axis=1)
            sys.stdout.write(f"{modality}: {off.mean():.3f} apart on average, {off.max():.3f} in the worst clip\n")
            assert off.max() < tolerance
    assert ratio >= 3
