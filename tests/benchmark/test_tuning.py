from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark import executors, grid, tuning
from benchmark.candidates import seeds, validation_score
from benchmark.cli import main
from benchmark.errors import INTERRUPTED, CellError, DataError, SchemaError, UsageError
from benchmark.executors import Failure, Outcome, Outcomes
from benchmark.experiments import load_experiment, stale_rows, tuning_file
from benchmark.grid import Train
from benchmark.paths import SOURCE_ROOT
from benchmark.proposals import Space, Trial, best, propose
from benchmark.protocol import Cell, Experiment, Setting, Tuning, validated
from benchmark.rendering import render
from benchmark.store import State, Store
from benchmark.tables import build_table
from tests.benchmark import fake_cells

RATES = [0.001, 0.01, 0.1]
FIELDS: dict[str, Any] = {
    "title": "Tiny",
    "datasets": ["digits"],
    "backbones": ["small"],
    "seeds": 2,
    "protocol": {"epochs": 1, "optimizer": {"lr": 0.001}},
    "baselines": {"joint": {}},
    "proposed": {"rgm": {}},
    "tuning": {
        "trials": 4,
        "seeds": 2,
        "search": {"protocol": {"optimizer.lr": RATES}, "methods": {"rgm": {"blocks": [1, 4, 8]}}},
    },
}
COLUMN = "digits/small/concat"
GAIN = {0.001: 0.0, 0.01: 0.2, 0.1: 0.1}


def here(function: Callable[[Any], Any], tasks: Sequence[Any], *, jobs: int) -> Outcomes[Any, Any]:  # noqa: ARG001
    """An executor without processes."""
    for task in tasks:
        try:
            yield Outcome(task, function(task))
        except CellError as error:
            yield Outcome(task, Failure("CellError", str(error)))


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(tmp_path)
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    for module in (grid, tuning):
        monkeypatch.setattr(module, "check_cell", fake_cells.check_cell)
    monkeypatch.setattr("benchmark.preparation.obtain", lambda _name: None)
    monkeypatch.setattr(executors, "load", lambda _name: here)
    # Reading the sources for every key takes longer than all else here.
    monkeypatch.setattr(Cell, "sources", lambda cell: {"method": cell.method})


def declare(home: Path, **changes: Any) -> None:
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    (home / "params.yaml").write_text(yaml.safe_dump({"experiments": {"tiny": fields}}))


def experiment(**changes: Any) -> Experiment:
    return validated(Experiment, {"name": "tiny", **FIELDS, **changes}, "Experiment 'tiny'")


def searching(**changes: Any) -> dict[str, Any]:
    return {**FIELDS["tuning"], **changes}


class Training:
    """Validation accuracy 0.5, more for some learning rates and few blocks; test accuracy prefers other rates."""

    def __init__(self, test: float | None = 0.0, stop_at: int | None = None, diverge: float | None = None) -> None:
        self.cells: list[Cell] = []
        self.test, self.stop_at, self.diverge = test, stop_at, diverge

    def __call__(self, cell: Cell, work: Path) -> dict[str, Any]:
        if len(self.cells) == self.stop_at:
            raise KeyboardInterrupt
        self.cells.append(cell)
        rate, blocks = cell.protocol.optimizer.lr, cell.options.get("blocks", 8)
        if rate == self.diverge:
            raise CellError(f"{cell.describe()}: Training loss became nan.")
        record = fake_cells.record(cell)
        [epoch] = record["epochs"]
        accuracy = 0.5 + GAIN[rate] - 0.01 * blocks + 0.001 * (cell.seed % 2)
        epochs = [{**epoch, "val": {"accuracy": accuracy}, "test": self.test and {"accuracy": self.test * rate}}]
        return {**record, "epochs": epochs, "options": {"blocks": 8} if cell.method == "rgm" else {}}


def tune(train: Train, *arguments: Any, **changes: Any) -> int:
    return tuning.tune(experiment(**changes), *arguments, train=train)


def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tuning_file("tiny").read_text())
    return found


def forget() -> None:
    tuning_file("tiny").unlink()
    shutil.rmtree(tuning_file("tiny").parents[1] / "work/tuning")


def trials(row: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result()["columns"][COLUMN][row]["trials"]
    return found


def test_a_row_chooses_the_values_with_the_best_mean_validation_accuracy() -> None:
    assert tune(Training()) == 0
    assert result()["chosen"][COLUMN]["joint"] == {"options": {}, "protocol": {"optimizer.lr": 0.01}}
    best_trial = max(trials("joint"), key=lambda trial: float(trial["score"]))
    assert best_trial["protocol"] == {"optimizer.lr": 0.01}
    assert best_trial["scores"] == pytest.approx([62.0, 62.1])
    assert best_trial["score"] == pytest.approx(62.05)


def test_the_experiment_reads_back_what_was_chosen() -> None:
    tune(Training())
    loaded = load_experiment("tiny")
    assert {cell.protocol.optimizer.lr for cell in loaded.cells(("joint",))} == {0.01}


def test_the_first_trial_has_the_untuned_values_and_wins_ties() -> None:
    search = {"protocol": {"optimizer.lr": [0.01]}, "methods": {"joint": {}}}
    same = {"epochs": 1, "optimizer": {"lr": 0.01}}
    tune(Training(), protocol=same, tuning=searching(search={**search, "protocol": {"batch_size": [8, 16]}}))
    assert len(trials("joint")) == 3
    assert trials("joint")[0]["protocol"] == {}
    assert result()["chosen"][COLUMN]["joint"] == {"options": {}, "protocol": {}}


def test_every_row_has_the_same_budget_and_an_exhausted_space_says_how_many_it_had() -> None:
    tune(Training())
    assert len(trials("rgm")) == 4
    # The untuned rate is one of the three, so two are left after the first trial.
    assert {trial["protocol"].get("optimizer.lr", 0.001) for trial in trials("joint")} == set(RATES)
    assert len(trials("joint")) == 3


def test_a_space_is_exhausted_without_training_defaults_or_repeats_twice() -> None:
    train = Training()
    tune(train, tuning=searching(trials=50))
    assert len(trials("rgm")) == 9
    assert len(train.cells) == 2 * (9 + 3)
    assert {"optimizer.lr": 0.001, "blocks": 8} not in [{**t["protocol"], **t["options"]} for t in trials("rgm")]


def test_trials_use_seeds_that_the_table_does_not() -> None:
    train = Training()
    tune(train)
    assert {cell.seed for cell in train.cells} == {1000, 1001}
    assert list(seeds(experiment(seeds=2000), Tuning(**searching()))) == [2000, 2001]


@pytest.mark.parametrize("rule", ["best_val", "last", "best_test"])
def test_the_test_part_has_no_say(rule: str) -> None:
    tune(Training(test=9.0), selection=rule)
    before = tuning_file("tiny").read_bytes()
    forget()
    tune(Training(test=-9.0), selection=rule)
    assert tuning_file("tiny").read_bytes() == before
    forget()
    tune(Training(test=None), selection=rule)
    assert tuning_file("tiny").read_bytes() == before


@pytest.mark.parametrize(("rule", "score"), [("best_val", 70), ("last", 60), ("best_test", 70)])
def test_a_score_is_the_validation_accuracy_of_the_epoch_that_validation_selects(rule: Any, score: float) -> None:
    epochs = [
        {"val": {"accuracy": 0.5}, "test": {"accuracy": 0.9}},
        {"val": {"accuracy": 0.7}, "test": {"accuracy": 0.1}},
        {"val": {"accuracy": 0.6}, "test": {"accuracy": 0.2}},
    ]
    assert validation_score({"epochs": epochs}, rule) == pytest.approx(score)


def test_an_interrupted_tuning_goes_on_to_the_same_result_without_training_twice() -> None:
    whole = Training()
    tune(whole)
    undisturbed = tuning_file("tiny").read_bytes()
    forget()
    first, second = Training(stop_at=7), Training()
    assert tune(first) == INTERRUPTED
    assert result()["chosen"] == {COLUMN: {}}
    assert tune(second) == 0
    assert tuning_file("tiny").read_bytes() == undisturbed
    assert len(first.cells) + len(second.cells) == len(whole.cells)


def test_a_smaller_budget_chooses_nothing_and_can_be_continued() -> None:
    tune(Training(), 2)
    assert (len(trials("joint")), len(trials("rgm"))) == (2, 2)
    assert result()["chosen"] == {COLUMN: {}}
    more = Training()
    tune(more)
    assert len(more.cells) == 2 * (1 + 2)
    assert set(result()["chosen"][COLUMN]) == {"joint", "rgm"}


def test_a_larger_budget_than_declared_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"declares 4 trials for every row, found --budget 5\. Give at most 4, or chan"
    ):
        tune(Training(), 5)


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tune(Training(diverge=0.01)) == 1
    [failed] = [trial for trial in trials("joint") if trial["state"] == "failed"]
    assert failed["reason"] == "seed 1000: Training loss became nan.; seed 1001: Training loss became nan."
    assert (failed["score"], failed["scores"]) == (None, [])
    assert result()["chosen"][COLUMN]["joint"]["protocol"] == {"optimizer.lr": 0.1}
    assert "3, 1 failed" in capsys.readouterr().out


def test_a_row_whose_every_trial_failed_chooses_nothing() -> None:
    tune(Training(diverge=0.001), tuning=searching(search={}))
    assert result()["chosen"] == {COLUMN: {}}


def test_tuning_rows_of_one_method_keeps_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    tune(Training(), None, ["joint"])
    before = result()["columns"][COLUMN]["joint"]
    train = Training()
    tune(train, None, ["rgm"])
    assert {cell.method for cell in train.cells} == {"rgm"}
    assert result()["columns"][COLUMN]["joint"] == before
    capsys.readouterr()
    assert tune(Training(stop_at=0)) == 0
    assert "tiny: all 2 rows are tuned." in capsys.readouterr().out


def test_a_row_whose_configuration_changed_is_tuned_anew() -> None:
    tune(Training())
    train = Training()
    tune(train, official=True)
    assert {cell.method for cell in train.cells} == {"joint", "rgm"}
    assert all(cell.official for cell in train.cells)


def test_a_tuning_starts_from_untuned_values_though_some_were_chosen() -> None:
    tune(Training(), None, ["joint"])
    train = Training()
    tuning.tune(load_experiment("tiny"), train=train)
    assert train.cells[0].protocol.optimizer.lr == 0.001


def test_cells_of_trials_stay_out_of_the_tables(tmp_path: Path) -> None:
    tune(Training())
    assert not (tmp_path / "results/cells").exists()
    states = {Store().status(cell).state for cell in load_experiment("tiny").cells()}
    assert states == {State.MISSING}


def test_a_result_says_where_it_comes_from() -> None:
    tune(Training())
    found = result()
    assert found["budget"] == {"trials": 4, "seeds": [1000, 1001]}
    assert found["search"] == searching()["search"]
    row = found["columns"][COLUMN]["rgm"]
    assert row["provenance"] == [fake_cells.record(fake_cells.cell())["provenance"]]
    assert row["sources"] == fake_cells.cell(method="rgm").sources()
    store = Store(tuning_file("tiny").parents[1] / "work/tuning")
    assert all(list(store.root.rglob(f"{key}.json")) for trial in row["trials"] for key in trial["cells"])


def test_rows_of_other_terms_are_refused_by_name_and_tuned_anew_without_the_others(tmp_path: Path) -> None:
    tune(Training())
    blocks = {"rgm": {"blocks": [1, 4]}}
    declare(tmp_path, tuning=searching(search={**searching()["search"], "methods": blocks}))
    with pytest.raises(UsageError, match=r"tiny\.json: rgm tuned under another budget.*Run `equipoise tune tiny`"):
        load_experiment("tiny")
    before = result()["columns"][COLUMN]["joint"]
    train = Training()
    tuning.tune(load_experiment("tiny", untuned=True), train=train)
    assert {cell.method for cell in train.cells} <= {"rgm"}
    assert result()["columns"][COLUMN]["joint"] == before
    assert load_experiment("tiny").tuned[COLUMN].keys() == {"joint", "rgm"}


def test_another_budget_or_protocol_makes_every_row_stale() -> None:
    tune(Training())
    for change in ({"tuning": searching(trials=3)}, {"protocol": {"epochs": 2}}, {"selection": "last"}):
        assert stale_rows(experiment(**change), result()["terms"]) == ["joint", "rgm"]
    assert stale_rows(experiment(), result()["terms"]) == []


def test_a_result_of_a_newer_version_is_refused() -> None:
    tune(Training())
    tuning_file("tiny").write_text(json.dumps({**result(), "schema": 3}))
    with pytest.raises(SchemaError, match=r"tiny\.json has schema 3; this version reads 2"):
        tune(Training())


def test_a_dataset_that_is_not_here_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(Training(), datasets=["digits", "av_digits"]) == 1
    shown = capsys.readouterr()
    assert "left out: av_digits: the data are not on this machine: `equipoise fetch av_digits`" in shown.err
    assert "`equipoise tune tiny`" in shown.err
    assert set(result()["columns"]) == {COLUMN}
    with pytest.raises(DataError, match="equipoise fetch av_digits"):
        tune(Training(), datasets=["av_digits"])


def test_an_experiment_without_a_budget_says_what_to_add(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    declare(tmp_path, tuning=None)
    assert main(["tune", "tiny"]) == 2
    assert "declares no `tuning:`. Add it to params.yaml, for instance `tuning: {trials: 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"methods": {"rgm": {"blocks": [1, 0]}}}, r"Options of method 'rgm': blocks: .*greater than or equal to 1"),
        ({"methods": {"rgm": {"bloks": [1]}}}, r"Options of method 'rgm': bloks: Extra inputs are not permitted"),
        ({"protocol": {"optimizer.lr": [0.1, -1.0]}}, r"optimizer\.lr: Input should be greater than 0\. Found -1\.0"),
        ({"protocol": {"rate": [0.1]}}, "Unknown protocol field 'rate'"),
        ({"protocol": {"split": ["best"]}}, "Dataset 'digits' has no split 'best'"),
    ],
)
def test_values_that_cannot_run_are_refused_before_any_training(
    search: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.run import check_cell

    monkeypatch.setattr(tuning, "check_cell", check_cell)
    train = Training()
    with pytest.raises(UsageError, match=message):
        tune(train, tuning=searching(search=search))
    assert train.cells == []


SPACE = Space({("protocol", "optimizer.lr"): RATES, ("options", "blocks"): [1, 4, 8]}, {("options", "blocks"): 8})


def tried(count: int, score: Callable[[Setting], float], row: str = "rgm") -> list[Trial]:
    found: list[Trial] = []
    while len(found) < count and (setting := propose(SPACE, found, ("tiny", COLUMN, row))) is not None:
        found.append(Trial(setting, (score(setting),)))
    return found


def test_proposals_follow_from_the_scores_and_differ_between_rows() -> None:
    assert tried(6, lambda _: 1.0) == tried(6, lambda _: 1.0)
    assert tried(6, lambda _: 1.0) != tried(6, lambda _: 1.0, "joint")


def test_scores_guide_the_later_trials() -> None:
    wide = Space({("options", "a"): list(range(20)), ("options", "b"): list(range(20))}, {})
    found: list[Trial] = []
    for _ in range(40):
        setting = propose(wide, found, ("tiny", COLUMN, "rgm"))
        assert setting is not None
        found.append(Trial(setting, (float(setting.options.get("a", 0) == 7),)))
    assert sum(trial.scores[0] for trial in found) > 5, "chance gives two"


def test_failed_trials_are_never_the_best_and_an_empty_space_ends_after_one() -> None:
    first, second = Trial(Setting(), reason="nan"), Trial(Setting(), (1.0,))
    assert best([first, second]) is second
    assert best([first]) is None
    assert propose(Space({}, {}), [second], ("tiny", COLUMN, "joint")) is None


def test_values_that_are_lists_can_be_searched() -> None:
    space = Space({("options", "components"): [["ear"], ["ear", "syn"]]}, {})
    settings = [Setting()]
    while (setting := propose(space, [Trial(s, (1.0,)) for s in settings], ("tiny",))) is not None:
        settings.append(setting)
    assert sorted(setting.options["components"] for setting in settings[1:]) == [["ear"], ["ear", "syn"]]


def test_tune_trains_and_shows_what_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    monkeypatch.setattr(executors, "load", lambda _name: here)
    declare(tmp_path, proposed={}, tuning={"trials": 2, "search": {"protocol": {"optimizer.lr": [0.1]}}})
    assert main(["tune", "tiny"]) == 0
    assert result()["chosen"][COLUMN]["joint"]["protocol"] == {"optimizer.lr": 0.1}
    assert "optimizer.lr=0.1" in capsys.readouterr().out
    code = "import sys; from benchmark.cli import main; main(['tune', 'tiny']); print('torch' in sys.modules)"
    again = subprocess.run([sys.executable, "-c", code], cwd=SOURCE_ROOT, check=True, capture_output=True, text=True)
    assert again.stdout.startswith("tiny: all 1 rows are tuned.")
    assert again.stdout.endswith("False\n"), "a tuned experiment imports torch"


class TrainingByTarget(Training):
    """Target r30 wants another learning rate than the others."""

    def __call__(self, cell: Cell, work: Path) -> dict[str, Any]:
        record = super().__call__(cell, work)
        if cell.target == "r30" and cell.protocol.optimizer.lr == 0.1:
            record["epochs"][0]["val"]["accuracy"] = 0.99
        return record


def test_every_target_is_tuned_on_the_other_domains_alone(tmp_path: Path) -> None:
    changes = {"datasets": ["digits_dg"], "targets": ["all"], "proposed": None}
    declare(tmp_path, **changes)
    train = TrainingByTarget()
    assert tuning.tune(load_experiment("tiny"), train=train) == 0
    assert {cell.target for cell in train.cells} == {"r0", "r30", "r60"}
    loaded = load_experiment("tiny")
    [row] = loaded.rows()
    rates = {cell.target: cell.protocol.optimizer.lr for cell in loaded.cells_of(row, loaded.columns()[0])}
    assert rates == {"r0": 0.01, "r30": 0.1, "r60": 0.01}
    shown = render(build_table(loaded, []), "md")
    assert "Chosen on r30: joint: optimizer.lr=0.1." in shown


def test_other_rows_come_and_go_without_making_a_tuning_stale() -> None:
    tune(Training())
    methods = {**FIELDS["tuning"]["search"]["methods"], "ogm_ge": {"alpha": [0.1]}}
    wider = {"tuning": searching(search={**FIELDS["tuning"]["search"], "methods": methods})}
    more = experiment(baselines={"joint": {}, "ogm_ge": {}}, **wider)
    assert stale_rows(more, result()["terms"]) == []
    assert stale_rows(experiment(proposed={}), result()["terms"]) == []
