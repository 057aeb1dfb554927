from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmark.cleaning import clean, declared_keys
from benchmark.cli import main
from benchmark.experiments import load_experiment
from benchmark.protocol import Cell
from benchmark.store import State, Store
from tests.benchmark.fake_cells import cell, record

PARAMS = {
    "experiments": {
        "tiny": {
            "title": "Tiny",
            "datasets": ["digits"],
            "backbones": ["small"],
            "seeds": 2,
            "protocol": {"epochs": 1},
            "baselines": {"joint": None},
        }
    }
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def left(store: Store, item: Cell, *names: str) -> Path:
    """Unfinished business of a cell that nobody trains."""
    work = store.work(item)
    with store.lease(item):
        for name in names:
            (work / name).write_bytes(b"twelve bytes")
    return work


def removed(store: Store, *, undeclared: bool = False, dry_run: bool = False) -> dict[str, str]:
    """What is removed, relative to the results, and why."""
    declared = {store.key(cell())} if undeclared else None
    return {
        str(leftover.path.relative_to(store.root)): leftover.reason
        for leftover in clean(store.root, declared, dry_run=dry_run)
    }


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_checkpoint_that_can_be_resumed_and_a_failure_are_kept_whoever_declares_their_cell(store: Store) -> None:
    kept = [left(store, cell(seed), "checkpoint.ckpt", "error.json") for seed in (0, 1)]
    assert removed(store) == {}
    assert [sorted(file.name for file in work.iterdir()) for work in kept] == [
        ["checkpoint.ckpt", "error.json", "lease"]
    ] * 2


def test_a_finished_result_is_never_touched(store: Store) -> None:
    undeclared = store.write(cell(7), record(cell(7)))
    before = undeclared.read_bytes()
    assert removed(store, undeclared=True) == {}
    assert undeclared.read_bytes() == before


def test_unfinished_business_of_a_finished_cell_is_dead(store: Store) -> None:
    store.write(cell(), record(cell()))
    work = left(store, cell(), "checkpoint.ckpt", "error.json")
    assert removed(store) == {f"work/{work.name}": "its cell is finished"}
    assert not work.exists()
    assert store.status(cell()).state is State.DONE


@pytest.mark.parametrize("damage", ["truncated", "newer"])
def test_a_checkpoint_beside_a_result_that_is_not_whole_or_not_understood_is_kept(store: Store, damage: str) -> None:
    path = store.write(cell(), record(cell()))
    text = path.read_text()
    path.write_text(text[:100] if damage == "truncated" else text.replace('"schema":', '"schema":9'))
    left(store, cell(), "checkpoint.ckpt")
    assert removed(store) == {}


def test_what_only_the_holder_of_the_lease_writes_is_dead_without_one(store: Store) -> None:
    work = left(store, cell(), "checkpoint.ckpt", "checkpoint.partial", "result.json")
    reason = "half-written by a process that is gone"
    assert removed(store) == {f"work/{work.name}/{name}": reason for name in ("result.json", "checkpoint.partial")}
    assert sorted(file.name for file in work.iterdir()) == ["checkpoint.ckpt", "lease"]


def test_nothing_of_a_cell_that_is_trained_is_dead(store: Store) -> None:
    store.write(cell(), record(cell()))
    for item in (cell(), cell(1)):
        left(store, item, "checkpoint.ckpt", "checkpoint.partial", "result.json")
    with store.lease(cell()), store.lease(cell(1)):
        assert removed(store, undeclared=True, dry_run=True) == {}
        assert removed(store, undeclared=True) == {}
    assert len(removed(store, undeclared=True)) == 2


def test_a_lease_that_nobody_holds_is_dead_alone(store: Store) -> None:
    work = left(store, cell())
    assert removed(store) == {f"work/{work.name}": "empty, and nobody trains its cell"}
    assert not work.exists()


def test_a_folder_in_place_of_a_lease_is_dead(store: Store) -> None:
    (store.work(cell()) / "lease").mkdir(parents=True)
    assert list(removed(store)) == [f"work/{store.key(cell())}"]


def test_cells_that_no_experiment_has_are_dead_only_where_that_is_said(store: Store) -> None:
    declared, undeclared = (left(store, cell(seed), "checkpoint.ckpt", "error.json") for seed in (0, 1))
    assert removed(store) == {}
    assert removed(store, undeclared=True) == {f"work/{undeclared.name}": "no declared experiment has its cell"}
    assert declared.exists()


def test_the_unfinished_business_of_a_search_is_never_undeclared(store: Store) -> None:
    search = Store(store.root / "work" / "tuning")
    left(search, cell(1), "checkpoint.ckpt")
    finished = search.write(cell(2), record(cell(2)))
    left(search, cell(2), "checkpoint.ckpt")
    assert removed(store, undeclared=True) == {f"work/tuning/work/{cell(2).key()}": "its cell is finished"}
    assert finished.exists()


def test_a_damaged_result_that_was_set_aside_is_dead_when_its_cell_is_finished(store: Store) -> None:
    path = store.write(cell(), record(cell()))
    path.write_text("half")
    store.set_aside(cell())
    assert "set_aside" not in str(removed(store))
    store.write(cell(), record(cell()))
    reason = "damaged, and its cell has been trained again"
    assert removed(store) == {f"work/set_aside/{path.name}": reason}


def test_a_partial_file_is_dead_with_its_process(store: Store) -> None:
    grids = store.root / "grids"
    grids.mkdir(parents=True)
    dead, living = (grids / f".tiny.json.{pid}.partial" for pid in (dead_process(), os.getpid()))
    other = grids / ".notes.partial"
    for file in (dead, living, other):
        file.touch()
    assert list(removed(store)) == [str(dead.relative_to(store.root))]
    assert sorted(grids.iterdir()) == sorted([living, other])


def test_a_partial_file_that_another_machine_writes_is_locked_and_kept(store: Store) -> None:
    store.root.mkdir()
    file = store.root / f".tiny.json.{dead_process()}.partial"
    with file.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert removed(store) == {}
    assert len(removed(store)) == 1


def test_a_dry_run_names_the_same_and_removes_nothing(store: Store) -> None:
    store.write(cell(), record(cell()))
    left(store, cell(), "checkpoint.ckpt")
    left(store, cell(1), "checkpoint.partial", "checkpoint.ckpt")
    before = sorted(store.root.rglob("*"))
    announced = removed(store, dry_run=True)
    assert sorted(store.root.rglob("*")) == before
    assert len(announced) == 2
    assert removed(store) == announced
    assert removed(store) == {}


def test_a_folder_without_results_has_nothing_to_remove(tmp_path: Path) -> None:
    assert list(clean(tmp_path / "results")) == []


def test_the_command_lists_path_size_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    store = Store()
    declared, undeclared = (left(store, cell(seed), "checkpoint.ckpt") for seed in (0, 2))
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == "0 bytes were freed.\n"
    line = f"{undeclared}  12 bytes  no declared experiment has its cell\n"
    assert main(["clean", "--undeclared", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{line}12 bytes would be freed.\n"
    assert main(["clean", "--undeclared"]) == 0
    assert capsys.readouterr().out == f"{line}12 bytes were freed.\n"
    assert declared.exists()
    assert not undeclared.exists()


def test_the_cells_of_an_experiment_and_of_its_quick_version_are_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = {"tiny": {**PARAMS["experiments"]["tiny"], "protocol": {"epochs": 5}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"experiments": experiments}))
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    every = [load_experiment(name).cells() for name in ("tiny", "tiny_quick")]
    assert declared_keys() == {item.key() for cells in every for item in cells}
    assert len(declared_keys()) == 4
