from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from benchmark import grid
from benchmark.errors import INTERRUPTED, CellError, DataError, SchemaError, UsageError
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Cell, Experiment, Protocol
from benchmark.store import State, StorageError, Store
from benchmark.version import RESULT_SCHEMA
from tests.benchmark import fake_cells
from tests.benchmark.fake_cells import cell, record
from tests.benchmark.processes import alive, wait_until

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty workspace, in which nothing has to be validated or prepared."""
    (tmp_path / "params.yaml").write_text("experiments: {}\n")
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE_ROOT))
    monkeypatch.setattr(grid, "check_cell", fake_cells.check_cell)
    monkeypatch.setattr("benchmark.preparation.obtain", lambda _name: None)


def experiment(seeds: int = 2) -> Experiment:
    return Experiment(
        name="tiny",
        title="Tiny",
        datasets=("digits",),
        backbones=("small",),
        seeds=seeds,
        protocol=Protocol(epochs=1),
        baselines={"joint": {}, "unimodal": {"upper": {"modality": "upper"}, "lower": {"modality": "lower"}}},
    )


def files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def log(home: Path) -> list[str]:
    file = home / "log"
    return file.read_text().split() if file.exists() else []


def start(home: Path, function: str, seeds: int) -> subprocess.Popen[bytes]:
    """Start `joint` and `remixing` with the given seeds in a process group of its own; it prints to `output`."""
    home.mkdir(exist_ok=True)
    (home / "params.yaml").write_text("experiments: {}\n")
    with (home / "output").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.benchmark.fake_cells", function, str(seeds), "2"],
            env={**os.environ, "EQUIPOISE_HOME": str(home)},
            cwd=SOURCE_ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def absent(name: str) -> None:
    if name == "av_digits":
        raise DataError("av_digits: no prepared data. Run `equipoise fetch av_digits`.")


def test_a_dataset_that_is_not_here_leaves_the_others_to_be_trained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.preparation.obtain", absent)
    both = experiment().model_copy(update={"datasets": ("digits", "av_digits")})
    assert grid.fill(both, jobs=2, train=fake_cells.run_cell) == 1
    shown = capsys.readouterr()
    assert "6 finished now, 0 failed, 6 without their data" in shown.out
    assert "not trained: av_digits: no prepared data. Run `equipoise fetch av_digits`." in shown.err
    assert not (Store().root / "grids/tiny.json").exists()


def test_a_grid_without_any_of_its_data_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.preparation.obtain", absent)
    with pytest.raises(DataError, match="Run `equipoise fetch av_digits`"):
        grid.fill(experiment().model_copy(update={"datasets": ("av_digits",)}), train=fake_cells.run_cell)


def test_a_grid_trains_every_cell_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grid.fill(experiment(), jobs=2, train=fake_cells.run_cell) == 0
    store = Store()
    assert [store.status(item).state for item in experiment().cells()] == [State.DONE] * 6
    captured = capsys.readouterr()
    assert "tiny: 6 cells: 0 finished before, 6 finished now, 0 failed" in captured.out
    assert "[6/6] finished digits/small/concat/" in captured.err
    assert files(tmp_path / "results" / "work") == {}


def test_a_finished_grid_does_nothing_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    grid.fill(experiment(), jobs=2, train=fake_cells.run_cell)
    capsys.readouterr()
    assert grid.fill(experiment(), jobs=2, train=fake_cells.fail_on_seed_1) == 0
    assert capsys.readouterr().out == "tiny: all 6 cells are finished.\n"


def test_more_seeds_train_the_new_cells_alone(capsys: pytest.CaptureFixture[str]) -> None:
    grid.fill(experiment(seeds=1), jobs=1, train=fake_cells.run_cell)
    grid.fill(experiment(seeds=2), jobs=1, train=fake_cells.run_cell)
    assert "6 cells: 3 finished before, 3 finished now" in capsys.readouterr().out


def test_one_method_of_a_grid_does_not_describe_the_grid(tmp_path: Path) -> None:
    assert grid.fill(experiment(), ["unimodal"], 1, train=fake_cells.run_cell) == 0
    assert len(files(tmp_path / "results" / "cells")) == 4
    assert not (tmp_path / "results" / "grids").exists()


def test_a_grid_is_described_by_what_all_rows_share(tmp_path: Path) -> None:
    grid.fill(experiment(), jobs=2, train=fake_cells.run_cell)
    file = tmp_path / "results" / "grids" / "tiny.json"
    first = json.loads(file.read_text())
    assert first["seeds"] == 2
    assert "joint" not in file.read_text()
    other = experiment().model_copy(update={"protocol": Protocol(epochs=2)})
    assert grid.description(other)["protocol"] != first["protocol"]
    assert {**grid.description(other), "protocol": first["protocol"]} == first


def test_a_method_that_is_no_row_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match=r"Experiment 'tiny' has no method 'rgm'. Its methods: joint, unimodal."):
        grid.fill(experiment(), ["rgm"], train=fake_cells.run_cell)


def test_every_row_is_checked_before_the_first_cell_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(item: Cell) -> None:
        if item.method == "unimodal":
            raise UsageError(f"No modality {item.options['modality']}.")

    monkeypatch.setattr(grid, "check_cell", refuse)
    with pytest.raises(UsageError, match=r"No modality upper.\nNo modality lower."):
        grid.fill(experiment(), jobs=2, train=fake_cells.fail_on_seed_1)
    assert log(tmp_path) == []
    assert not (tmp_path / "results").exists()


def test_a_failure_is_recorded_counted_and_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grid.fill(experiment(), ["joint"], 2, train=fake_cells.fail_on_seed_1) == 1
    store = Store()
    assert store.read(cell(0)) is not None
    assert store.status(cell(1)).state is State.FAILED
    [error] = store.failures([cell(0), cell(1)])
    assert "fail_on_seed_1" in error["traceback"]
    assert error["message"].endswith("Training loss became nan.\nA second line.")
    captured = capsys.readouterr()
    assert "failed: digits/small/concat/joint seed 1: Training loss became nan. See " in captured.err
    assert "2 cells: 0 finished before, 1 finished now, 1 failed" in captured.out
    assert not (tmp_path / "results" / "grids").exists()


def test_a_failed_cell_is_tried_again_and_its_failure_forgotten_when_it_succeeds(tmp_path: Path) -> None:
    for attempts in (1, 2):
        assert grid.fill(experiment(), ["joint"], 1, train=fake_cells.fail_on_seed_1) == 1
        error = Store().error(cell(1))
        assert error is not None
        assert error["attempts"] == attempts
    assert grid.fill(experiment(), ["joint"], 1, train=fake_cells.run_cell) == 0
    assert Store().status(cell(1)).state is State.DONE
    assert files(tmp_path / "results" / "work") == {}


def test_a_killed_worker_fails_its_cell_alone_after_three_tries(tmp_path: Path) -> None:
    assert grid.fill(experiment(4), ["joint"], 2, train=fake_cells.die_on_seed_1) == 1
    store = Store()
    states = [store.status(cell(seed)).state for seed in range(4)]
    assert states == [State.DONE, State.FAILED, State.DONE, State.DONE]
    assert "SIGKILL (out of memory?)" in store.status(cell(1)).reason
    assert log(tmp_path).count(store.key(cell(1))) == 3


def test_a_worker_killed_once_costs_nothing() -> None:
    assert grid.fill(experiment(), ["joint"], 1, train=fake_cells.die_once) == 0


def test_a_full_disk_stops_the_grid_and_keeps_finished_cells() -> None:
    with pytest.raises(StorageError, match=r"the disk is full. Free some space and give the same command again"):
        grid.fill(experiment(), ["joint"], 1, train=fake_cells.fill_disk_on_seed_1)
    store = Store()
    assert store.read(cell(0)) is not None
    assert store.status(cell(1)).state is State.MISSING
    assert grid.fill(experiment(), ["joint"], 1, train=fake_cells.run_cell) == 0


def test_a_corrupt_result_is_named_kept_and_trained_anew(capsys: pytest.CaptureFixture[str]) -> None:
    grid.fill(experiment(), ["joint"], 1, train=fake_cells.run_cell)
    store = Store()
    whole = store.path(cell(1)).read_text()
    store.path(cell(1)).write_text(whole[:100])
    assert grid.fill(experiment(), ["joint"], 1, train=fake_cells.run_cell) == 0
    assert store.path(cell(1)).read_text() == whole
    kept = store.root / "work" / "set_aside" / store.path(cell(1)).name
    assert kept.read_text() == whole[:100]
    message = capsys.readouterr().err
    assert f"Result {store.path(cell(1))} is truncated or corrupt" in message
    assert f"Set aside as {kept}." in message


def test_a_result_of_a_newer_version_stops_the_grid_and_stays(tmp_path: Path) -> None:
    path = Store().write(cell(1), record(cell(1)))
    newer = path.read_text().replace(f'"schema":{RESULT_SCHEMA}', f'"schema":{RESULT_SCHEMA + 1}')
    path.write_text(newer)
    with pytest.raises(SchemaError):
        grid.fill(experiment(), ["joint"], 1, train=fake_cells.fail_on_seed_1)
    assert path.read_text() == newer
    assert log(tmp_path) == []


def test_a_cell_whose_sources_changed_after_the_start_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(CellError, match=r"changed after the grid had started. Start the grid again."):
        grid.work(tmp_path / "results", fake_cells.run_cell, (cell(), "0" * 64))
    assert files(tmp_path / "results" / "cells") == {}


def test_a_cell_whose_sources_changed_while_it_trained_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = cell().key()

    def train_during_an_edit(item: Cell, work: Path) -> dict[str, object]:
        monkeypatch.setattr(Cell, "key", lambda _self, _sources=None: "f" * 64)
        return fake_cells.run_cell(item, work)

    with pytest.raises(CellError, match="changed after the grid had started"):
        grid.work(tmp_path / "results", train_during_an_edit, (cell(), key))
    assert files(tmp_path / "results" / "cells") == {}


def test_a_cell_that_another_grid_trains_is_left_to_it() -> None:
    store = Store()
    with store.lease(cell()):
        answer = grid.work(store.root, fake_cells.run_cell, (cell(), store.key(cell())))
    assert answer.kind == "busy"
    assert store.read(cell()) is None


def test_two_grids_side_by_side_share_the_work(tmp_path: Path) -> None:
    grids = [start(tmp_path, "run_slowly", seeds=8) for _ in range(2)]
    assert [process.wait(60) for process in grids] == [0, 0], (tmp_path / "output").read_text()
    assert len(files(tmp_path / "results" / "cells")) == 16
    assert len(log(tmp_path)) == 16, "a cell was trained twice"


def test_a_killed_grid_leaves_no_worker_and_its_successor_ends_with_the_undisturbed_results(
    tmp_path: Path,
) -> None:
    assert start(tmp_path / "undisturbed", "run_slowly", seeds=4).wait(60) == 0
    undisturbed = files(tmp_path / "undisturbed" / "results")
    assert len(undisturbed) == 8

    moments = random.Random(0)
    for attempt in range(3):
        home = tmp_path / f"killed {attempt}"
        process = start(home, "run_slowly", seeds=4)
        wait_until(partial(log, home))
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.wait()
        orphans = [int(pid) for pid in log(home)]
        finished = {f"cells/{name}": content for name, content in files(home / "results" / "cells").items()}
        assert finished.items() <= undisturbed.items()
        assert start(home, "run_slowly", seeds=4).wait(60) == 0
        assert files(home / "results") == undisturbed
        assert not any(alive(pid) for pid in orphans)


def test_ctrl_c_keeps_finished_cells_ends_workers_and_returns_130(tmp_path: Path) -> None:
    process = start(tmp_path, "run_for_ever", seeds=3)
    # Seed 0 of `joint` is finished at once; then both workers sleep.
    wait_until(lambda: len(log(tmp_path)) == 3 and len(files(tmp_path / "results" / "cells")) == 1)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: every process of the group is told
    assert process.wait(30) == INTERRUPTED
    output = (tmp_path / "output").read_text()
    assert "fake: interrupted: 0 finished before, 1 finished now, 0 failed, 5 left." in output
    assert "Traceback" not in output
    assert not any(alive(int(pid)) for pid in log(tmp_path))
    assert len(files(tmp_path / "results" / "cells")) == 1
