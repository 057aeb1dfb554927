from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.errors import CellError, SchemaError
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Cell
from benchmark.store import CorruptResultError, State, StorageError, Store, write_atomically
from benchmark.version import RESULT_SCHEMA
from tests.benchmark.fake_cells import cell, not_finite, record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_a_result_lies_under_dataset_backbone_method_and_key(store: Store) -> None:
    path = store.write(cell(), record(cell()))
    assert path.relative_to(store.root).as_posix() == f"cells/digits/small/joint/{cell().key()}.json"


def test_what_is_read_is_what_was_written_with_schema_key_and_cell(store: Store) -> None:
    store.write(cell(), record(cell()))
    expected = {**record(cell()), "schema": RESULT_SCHEMA, "key": cell().key(), "cell": cell().identity()}
    assert store.read(cell()) == expected
    assert store.read(cell(seed=1)) is None


def test_a_finished_cell_leaves_nothing_but_its_result(store: Store) -> None:
    store.fail(cell(), "CellError", "Training loss became nan.")
    with store.lease(cell()) as mine:
        assert mine
        (store.work(cell()) / "checkpoint.ckpt").touch()
        path = store.write(cell(), record(cell()))
    assert files(store) == [str(path.relative_to(store.root))]


def test_the_same_record_gives_the_same_bytes(store: Store) -> None:
    before = store.write(cell(), record(cell())).read_bytes()
    reordered = dict(reversed(record(cell()).items()))
    assert store.write(cell(), reordered).read_bytes() == before


def test_a_record_that_is_not_finite_is_refused(store: Store) -> None:
    with pytest.raises(CellError, match="digits/small/concat/joint seed 0: the record holds a number that is not"):
        store.write(cell(), not_finite(cell(), store.work(cell())))
    assert files(store) == []


@pytest.mark.parametrize("content", ["", '{"schema": 1, "ke', "[1, 2]", "null", '{"key": "x"}', "\x00\x01"])
def test_a_truncated_or_corrupt_result_is_named(store: Store, content: str) -> None:
    path = store.write(cell(), record(cell()))
    path.write_text(content)
    with pytest.raises(CorruptResultError, match=f"{path}.*Run its grid again"):
        store.read(cell())
    assert store.status(cell()).state is State.FAILED


def test_a_result_under_another_name_is_corrupt(store: Store) -> None:
    path = store.write(cell(), record(cell()))
    other = store.path(cell(seed=1))
    path.rename(other)
    with pytest.raises(CorruptResultError, match=f"holds the record of key '{cell().key()}'"):
        store.read(cell(seed=1))


def test_a_result_that_is_set_aside_is_kept(store: Store) -> None:
    path = store.write(cell(), record(cell()))
    path.write_text("half")
    kept = store.set_aside(cell())
    assert kept is not None
    assert kept.read_text() == "half"
    assert store.read(cell()) is None
    store.write(cell(), record(cell()))
    assert kept.exists()


def test_a_result_that_another_grid_has_trained_meanwhile_is_not_set_aside(store: Store) -> None:
    path = store.write(cell(), record(cell()))
    whole = path.read_bytes()
    assert store.set_aside(cell()) is None
    assert path.read_bytes() == whole


def test_a_corrupt_result_whose_cell_another_grid_trains_is_left_to_it(store: Store) -> None:
    path = store.write(cell(), record(cell()))
    path.write_text("half")
    with store.lease(cell()):
        assert store.set_aside(cell()) is None
    assert path.read_text() == "half"


def test_a_folder_in_place_of_a_result_is_set_aside(store: Store) -> None:
    (store.path(cell()) / "inner").mkdir(parents=True)
    assert store.status(cell()).state is State.FAILED
    kept = store.set_aside(cell())
    assert kept is not None
    assert kept.is_dir()
    assert store.status(cell()).state is State.MISSING


def test_sources_are_read_once_however_many_cells_share_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [cell(seed).key() for seed in range(20)]
    read: list[str] = []

    def noted(self: Cell) -> dict[str, str]:
        read.append(self.method)
        return sources(self)

    sources = Cell.sources
    monkeypatch.setattr(Cell, "sources", noted)
    assert [store.key(cell(seed)) for seed in range(20)] == expected
    assert store.key(cell(0, "remixing")) != expected[0]
    assert read == ["joint", "remixing"]


def test_a_newer_schema_is_refused_with_what_was_found_and_what_to_do(store: Store) -> None:
    path = store.write(cell(), record(cell()))
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": RESULT_SCHEMA + 1}))
    message = f"{path} has schema {RESULT_SCHEMA + 1}; this version reads up to {RESULT_SCHEMA}. Upgrade"
    with pytest.raises(SchemaError, match=message):
        store.read(cell())


def test_a_failure_says_what_when_and_how_often(store: Store) -> None:
    store.fail(cell(), "CellError", "Training loss became nan.", "Traceback ...")
    path = store.fail(cell(), "ValueError", "two is refused", "Traceback of the second")
    error = json.loads(path.read_text())
    assert path == store.work(cell()) / "error.json"
    assert (error["class"], error["message"]) == ("ValueError", "two is refused")
    assert error["error"] == "ValueError: two is refused"
    assert error["traceback"] == "Traceback of the second"
    assert error["attempts"] == 2
    assert error["cell"] == cell().identity()
    assert error["time"].startswith("20")
    assert store.failures([cell(), cell(seed=1)]) == [error]


def test_a_failure_never_counts_as_done(store: Store) -> None:
    store.fail(cell(), "CellError", "Training loss became nan.")
    assert store.read(cell()) is None
    assert store.records([cell()]) == []
    status = store.status(cell())
    assert (status.state, status.reason) == (State.FAILED, "CellError: Training loss became nan.")


@pytest.mark.parametrize("content", ["", '{"key": "ab', "[]"])
def test_a_damaged_record_of_a_failure_still_tells_of_one(store: Store, content: str) -> None:
    path = store.fail(cell(), "CellError", "diverged")
    path.write_text(content)
    status = store.status(cell())
    assert (status.state, status.reason) == (State.FAILED, f"It failed, but {path} is truncated or corrupt")
    assert store.failures([cell()])[0]["cell"] == cell().identity()
    store.fail(cell(), "CellError", "diverged again")
    assert store.status(cell()).reason == "CellError: diverged again"


def test_states_done_running_failed_missing(store: Store) -> None:
    done, running, failed, missing = (cell(seed) for seed in range(4))
    store.write(done, record(done))
    store.fail(failed, "CellError", "diverged")
    with store.lease(running):
        states = [store.status(item).state for item in (done, running, failed, missing)]
    assert states == [State.DONE, State.RUNNING, State.FAILED, State.MISSING]
    assert store.status(running).state is State.MISSING


def test_a_failed_cell_that_is_tried_again_is_running(store: Store) -> None:
    store.fail(cell(), "CellError", "diverged")
    with store.lease(cell()):
        assert store.status(cell()).state is State.RUNNING
    assert store.status(cell()).state is State.FAILED


def test_a_result_of_other_sources_is_stale(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(cell(), record(cell()))
    monkeypatch.setattr(Cell, "key", lambda _self, _sources=None: "f" * 64)
    edited = Store(store.root)
    assert edited.status(cell()).state is State.STALE
    assert edited.status(cell(seed=1)).state is State.MISSING
    assert edited.read(cell()) is None


def test_a_lease_is_held_by_one_at_a_time(store: Store) -> None:
    with store.lease(cell()) as first:
        with store.lease(cell(), seconds=0) as second:
            assert (first, second) == (True, False)
        with store.lease(cell(seed=1), seconds=0) as other:
            assert other
    with store.lease(cell(), seconds=0) as again:
        assert again


def test_a_lease_counts_whatever_it_contains_and_whenever_it_was_written(store: Store) -> None:
    with store.lease(cell()):
        lease = store.work(cell()) / "lease"
        lease.write_bytes(b"\xff garbage")
        os.utime(lease, (0, 2**33))
        assert store.running(cell())
    assert not store.running(cell())
    with store.lease(cell(), seconds=0) as mine:
        assert mine


def test_a_folder_in_place_of_a_lease_is_no_lease(store: Store) -> None:
    (store.work(cell()) / "lease" / "inner").mkdir(parents=True)
    assert store.status(cell()).state is State.MISSING
    with store.lease(cell(), seconds=0) as mine:
        assert mine
        assert store.running(cell())


def test_a_lease_that_has_become_unreadable_is_mended_and_still_excludes(store: Store) -> None:
    with store.lease(cell()):
        lease = store.work(cell()) / "lease"
        lease.chmod(0)
        assert store.running(cell())
        assert lease.stat().st_mode & 0o600 == 0o600
    lease.chmod(0)
    with store.lease(cell(), seconds=0) as mine:
        assert mine


def test_the_lease_of_a_killed_process_is_free_at_once(store: Store) -> None:
    code = (
        "import sys, time; from pathlib import Path; from benchmark import leases\n"
        "with leases.hold(Path(sys.argv[1]), 0) as mine: print(mine, flush=True); time.sleep(600)"
    )
    store.work(cell()).mkdir(parents=True)
    (store.work(cell()) / "checkpoint.ckpt").touch()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.work(cell()))], cwd=SOURCE_ROOT, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert store.status(cell()).state is State.RUNNING
        holder.kill()
        holder.wait()
        assert store.status(cell()).state is State.MISSING
    assert (store.work(cell()) / "checkpoint.ckpt").exists()


def test_looking_at_a_cell_does_not_create_anything(store: Store) -> None:
    assert store.status(cell()).state is State.MISSING
    assert not store.root.exists()


def test_a_full_disk_ends_in_one_sentence_and_keeps_what_is_there(store: Store) -> None:
    finished = store.write(cell(), record(cell()))
    store.work(cell(seed=1)).mkdir(parents=True)
    (store.work(cell(seed=1)) / "result.json").symlink_to("/dev/full")
    with pytest.raises(StorageError) as raised:
        store.write(cell(seed=1), record(cell(seed=1)))
    assert str(raised.value) == (
        f"Cannot write {store.path(cell(seed=1))}: the disk is full. Free some space and give the same command again; "
        "finished cells are kept."
    )
    assert raised.value.exit_status == 1
    assert store.read(cell(seed=1)) is None
    assert finished.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    store = Store(tmp_path / "results")
    with (
        pytest.raises(StorageError, match=r"Cannot write .*Not a directory. Correct that"),
        store.lease(cell()),
    ):
        pass


def test_an_interrupted_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "grid.json"
    write_atomically(target, "old")

    def killed(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark.store.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
