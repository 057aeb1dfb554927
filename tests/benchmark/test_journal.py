from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmark import journal
from benchmark.dataset import Dataset, DatasetCard
from benchmark.errors import DataError
from benchmark.paths import SOURCE_ROOT
from benchmark.preparation import PreparedWriter, write_prepared
from benchmark.prepared import Prepared

ROWS = 120
DIGEST = "a" * 64


@dataclass(frozen=True)
class Note:
    """What is known of a row."""

    faults: tuple[str, ...]
    rate: float


class Noise(Dataset):
    """Rows of noise, in two modalities that grow together and one that follows them."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="noise",
        title="Noise",
        licence="CC0",
        citation="none",
        shapes={"sound": (5, 7), "picture": (3, 4, 4), "flow": (2, 2)},
        classes=("white", "pink"),
        splits={"plain": "as it comes"},
        default_split="plain",
    )
    keys = tuple(f"row {n}" for n in range(ROWS))
    pause = 0.0
    stop = ROWS
    """Number of the row at which a preparation is interrupted."""

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        made: list[int] = []

        def noise(done: int, *modalities: str) -> Generator[tuple[dict[str, NDArray[Any]], Note], None, None]:
            for n in range(done, ROWS):
                if n == self.stop:
                    raise KeyboardInterrupt
                made.append(n)
                time.sleep(self.pause)
                random = np.random.default_rng(n)
                rows = {m: random.integers(0, 256, self.card.shapes[m]).astype(np.uint8) for m in modalities}
                yield rows, Note(("odd",) * (n % 2), n / 3)

        kinds = {"sound": np.uint8, "picture": np.uint8}
        notes = out.store(self.keys, kinds, lambda done: noise(done, *kinds), Note)
        again = out.store(self.keys, {"flow": np.uint8}, lambda done: noise(done, "flow"), Note)
        assert notes == again == [Note(("odd",) * (n % 2), n / 3) for n in range(ROWS)]
        parts = [("train", "val", "test")[n % 3] for n in range(ROWS)]
        out.samples([f"id {n}" for n in range(ROWS)], [n % 2 for n in range(ROWS)], splits={"plain": parts})
        out.say(f"made {len(made)}")


def write(folder: Path, digest: str = DIGEST, **changes: Any) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    dataset = type("Noise", (Noise,), changes)()
    return write_prepared(dataset, folder / "raw", folder / "noise", digest, say=said.append), said


def contents(prepared: Prepared) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(prepared.folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(write(tmp_path_factory.mktemp("undisturbed"))[0])


KILLED = """
import sys
from pathlib import Path
from benchmark import journal
from tests.benchmark.test_journal import write
journal.SECONDS = float(sys.argv[2])
write(Path(sys.argv[1]), pause=0.002)
"""


def test_a_preparation_that_is_killed_again_and_again_ends_in_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    def lines() -> int:
        return sum(file.read_bytes().count(b"\n") for file in tmp_path.glob(".noise.new/unfinished/*/*.jsonl"))

    kept = [0]
    for seconds in np.random.default_rng(0).uniform(0.0, 0.1, 4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), "0.02"], cwd=SOURCE_ROOT)
        while lines() < kept[-1] + 3 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "noise").exists()
        kept.append(lines())
    assert all(later >= earlier + 3 for earlier, later in pairwise(kept))
    prepared, _ = write(tmp_path)
    assert contents(prepared) == undisturbed


@pytest.mark.parametrize("stop", [1, 60, ROWS - 1])
def test_what_was_made_before_an_interruption_is_not_made_again(
    tmp_path: Path, stop: int, undisturbed: dict[str, bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop=stop)
    prepared, said = write(tmp_path)
    assert said[:2] == [
        f"noise: sound, picture: {stop} of {ROWS} were stored before; going on from there",
        f"made {2 * ROWS - stop}",
    ]
    assert contents(prepared) == undisturbed
    assert not (tmp_path / ".noise.new").exists()


def test_a_run_of_another_version_or_with_other_keys_begins_anew(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for changes, again in (({"digest": "b" * 64}, ROWS), ({"keys": Noise.keys[::-1]}, ROWS), ({}, ROWS - 60)):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, stop=60)
        prepared, said = write(tmp_path, **changes)
        assert f"made {ROWS + again}" in said
        assert not (tmp_path / ".noise.new").exists()
    assert contents(prepared) == undisturbed


def damaged(folder: Path, how: str) -> None:
    (file,) = folder.glob(".noise.new/unfinished/*/sound+picture.jsonl")
    if how == "torn line":
        file.write_bytes(file.read_bytes()[:-3])
    elif how == "no journal":
        file.unlink()
    elif how == "rows lost":
        os.truncate(folder / ".noise.new" / "picture.npy", 128 + 40 * 48 + 5)
    elif how == "array lost":
        (folder / ".noise.new" / "sound.npy").unlink()
    else:
        with (folder / ".noise.new" / "sound.npy").open("ab") as stream:
            stream.write(b"half a row")


@pytest.mark.parametrize(
    ("how", "kept"), [("torn line", 59), ("no journal", 0), ("rows lost", 40), ("array lost", 0), ("half a row", 60)]
)
def test_only_rows_that_are_whole_in_every_array_and_in_the_journal_count(
    tmp_path: Path, how: str, kept: int, undisturbed: dict[str, bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop=60)
    damaged(tmp_path, how)
    prepared, said = write(tmp_path)
    assert f"made {2 * ROWS - kept}" in said
    assert contents(prepared) == undisturbed


def test_an_interrupted_preparation_keeps_the_previous_data(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    write(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop=60)
    assert {file.name: file.read_bytes() for file in sorted((tmp_path / "noise").iterdir())} == undisturbed


def test_a_kill_between_the_two_renames_loses_neither_the_old_nor_the_new(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    before, _ = write(tmp_path)
    before.folder.rename(tmp_path / ".noise.old")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop=60)
    assert (tmp_path / "noise" / "meta.json").is_file()
    assert contents(write(tmp_path)[0]) == undisturbed
    assert not [*tmp_path.glob(".noise.[no]*")]


def test_a_full_disk_is_one_sentence_and_keeps_what_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    calls = iter(range(10**6))

    def full(_descriptor: int) -> None:
        if next(calls) > 90:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "SECONDS", 0.0)
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            DataError,
            match=r"^The disk is full while writing .*noise\. Free some space and run `equipoise prepare noise`",
        ):
            write(tmp_path)
    prepared, said = write(tmp_path)
    # Three files are put on the disk for every row.
    assert said[0].startswith("noise: sound, picture: 30 of 120 were stored before")
    assert contents(prepared) == undisturbed
