from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmark import grid
from benchmark.cli import main
from benchmark.experiments import load_experiment
from benchmark.paths import SOURCE_ROOT
from benchmark.registry import METHODS
from benchmark.store import Store
from tests.benchmark import fake_cells

PARAMS = {
    "experiments": {
        "tiny": {
            "title": "Tiny experiment",
            "datasets": ["digits"],
            "backbones": ["small"],
            "seeds": 3,
            "protocol": {"epochs": 1},
            "baselines": {"joint": None, "remixing": {"": {}}},
            "proposed": {"rgm": {}},
        }
    }
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def finished(home: Path) -> Path:
    store = Store()
    for cell in load_experiment("tiny").cells():
        store.write(cell, fake_cells.record(cell))
    return home


def equipoise(*arguments: str, prefix: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, after the code `prefix`; say last whether torch was imported."""
    code = (
        f"import sys\n{prefix}\nfrom benchmark.cli import main\nstatus = main(sys.argv[1:])\n"
        "print('torch' in sys.modules)\nsys.exit(status)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE_ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def seconds(*arguments: str) -> float:
    """Shortest wall time of three runs of `python -m benchmark`, which is what `equipoise` costs."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "benchmark", *arguments], cwd=SOURCE_ROOT, check=True, capture_output=True
        )
        found.append(time.perf_counter() - started)
    return min(found)


def test_list_methods_takes_less_than_half_a_second_and_imports_no_torch() -> None:
    result = equipoise("list", "methods")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "False")
    found = seconds("list", "methods")
    print(f"equipoise list methods: {found:.2f} s")  # noqa: T201 - the figure
    assert found < 0.5


def test_a_finished_grid_and_its_status_take_less_than_a_second_and_import_no_torch(finished: Path) -> None:
    for arguments in (["grid", "tiny"], ["grid", "tiny", "--method", "rgm"], ["status", "tiny"]):
        result = equipoise(*arguments)
        assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "False")
        found = seconds(*arguments)
        print(f"equipoise {' '.join(arguments)}: {found:.2f} s")  # noqa: T201 - the figure
        assert found < 1
    assert (finished / "results" / "grids" / "tiny.json").exists()


def test_listing_names_kind_origin_and_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == METHODS.names()
    [rgm] = [line for line in lines if line.startswith("rgm ")]
    assert rgm.split()[1:3] == ["proposed", "equipoise"]
    assert rgm.endswith(METHODS.entry("rgm").description())


def test_listing_baselines_leaves_the_proposed_methods_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "baselines", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)
    assert {item["kind"] for item in items} == {"baseline"}
    assert "joint" in [item["name"] for item in items]


@pytest.mark.parametrize(("kind", "name"), [("datasets", "digits"), ("backbones", "small"), ("fusions", "concat")])
def test_every_kind_is_listed(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert found[name].keys() == {"name", "kind", "origin", "description"}
    assert found[name]["description"]


@pytest.mark.usefixtures("home")
def test_experiments_are_listed_with_their_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "experiments"]) == 0
    assert capsys.readouterr().out == "tiny  experiment  params.yaml  Tiny experiment\n"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid", "tinny"], "Error: Unknown experiment 'tinny'. Did you mean 'tiny'? Known: tiny.\n"),
        (
            ["grid", "tiny", "--method", "pcgrad"],
            "has no method 'pcgrad'. Its methods: joint, remixing, rgm.",
        ),
        (["table", "tinny"], "Unknown experiment 'tinny'"),
        (["status", "tinny"], "Unknown experiment 'tinny'"),
        (["check", "jiont"], "Unknown method or dataset 'jiont'. Did you mean 'joint'?"),
        (["check", "rna_net+gnp"], "Unknown method or dataset 'gnp'. Did you mean 'gmp'?"),
        (["check", "rna_net+digits"], "Unknown method 'digits'."),
        (["check"], "Name the methods or datasets to check, or give --all."),
        (["check", "joint", "--all"], "Name the methods or datasets to check, or give --all."),
        (["fetch", "digit"], "Unknown dataset or backbone 'digit'. Did you mean 'digits'?"),
        (["prepare", "digit"], "Unknown dataset 'digit'. Did you mean 'digits'?"),
        (["run", "--dataset", "digits", "--method", "joint"], "Unknown experiment 'digits'."),
        (["run", "--dataset", "digits"], "Missing option '--method'"),
        (["grid", "tiny", "--jobs", "0"], "Invalid value for '-j' / '--jobs'"),
        (["grid", "tiny", "--executor", "moon"], "Invalid value for '--executor'"),
        (["list", "method"], "Invalid value for '{methods|baselines"),
        (["train"], "No such command 'train'"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


RUN = ["run", "--dataset", "digits", "--experiment", "tiny", "--method"]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["joint", "--set", "lr=1"],
            "Options of method 'joint': lr: Extra inputs are not permitted. Found 1. Known: none.",
        ),
        (["pcgrad", "--set", "tasks=3"], "tasks: Input should be 'modality' or 'losses'. Found 3."),
        (["unimodal", "--set", "modality=video"], "has no modality 'video'; choose one of upper, lower."),
        (["joint", "--set", "lr"], "'lr' is not of the form option=value."),
        (["joint", "--set", "lr=[1"], "'lr=[1': the value is no YAML:"),
        (["joint", "--backbone", "smal"], "Unknown backbone 'smal'. Did you mean 'small'?"),
        (["joint", "--fusion", "cat"], "Unknown fusion 'cat'."),
        (["joint", "--target", "r30"], "Dataset 'digits' has no domains to leave out."),
        (["base", "--dataset", "digits_dg", "--target", "r9"], "Unknown target domain of dataset 'digits_dg' 'r9'."),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    home: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (home / "results").exists()


@pytest.mark.parametrize(
    ("target", "expected"),
    [(["--target", "r30"], ["target r30"]), ([], ["target r0", "target r30", "target r60"])],
)
def test_run_leaves_out_the_named_domain_or_those_of_the_experiment(
    target: list[str],
    expected: list[str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    domains = {**PARAMS["experiments"]["tiny"], "datasets": ["digits_dg"], "targets": ["all"]}
    (home / "params.yaml").write_text(yaml.safe_dump({"experiments": {"tiny": domains}}))
    monkeypatch.setattr(grid, "check_cell", fake_cells.check_cell)
    monkeypatch.setattr("benchmark.preparation.obtain", lambda _name: None)
    monkeypatch.setattr(grid, "complete", partial(grid.complete, train=fake_cells.run_cell))
    assert main([*RUN, "base", "--dataset", "digits_dg", "--seeds", "1", *target]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == expected


def test_run_trains_the_given_options_and_shows_each_seed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "check_cell", fake_cells.check_cell)
    monkeypatch.setattr("benchmark.preparation.obtain", lambda _name: None)
    monkeypatch.setattr(grid, "complete", partial(grid.complete, train=fake_cells.run_cell))
    assert main([*RUN, "pcgrad", "--seeds", "2", "--set", "tasks=losses", "--fusion", "sum"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[1] == "Test metrics, epoch selected by best_val:"
    assert [line.split("  ")[0] for line in output[2:]] == ["seed 0", "seed 1"]
    assert output[2].split()[2::2] == ["accuracy", "balance_factor"]
    [*_, stored] = [json.loads(file.read_text())["cell"] for file in (home / "results" / "cells").rglob("*.json")]
    assert (stored["fusion"], stored["options"]) == ("sum", {"tasks": "losses"})


def test_status_counts_every_row_and_ends_with_1_when_a_cell_has_failed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tiny", "done", "running", "failed", "stale", "missing"]
    assert lines[-2].split() == ["all", "9", "0", "0", "0", "0"]

    store = Store()
    cells = list(load_experiment("tiny").cells(("rgm",)))
    for cell in cells:
        store.path(cell).unlink()
    store.fail(cells[0], "CellError", "Training loss became nan.")
    with store.lease(cells[1]):
        assert main(["status", "tiny"]) == 1
    output = capsys.readouterr().out
    [rgm] = [line for line in output.splitlines() if line.startswith("rgm")]
    assert rgm.split() == ["rgm", "0", "1", "1", "0", "1"]
    assert "failed: digits/small/concat/rgm seed 0: CellError: Training loss became nan." in output
    assert (finished / "results" / "work").exists()


@pytest.mark.usefixtures("finished")
def test_a_table_is_printed_in_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for form in ("md", "csv", "json", "latex"):
        assert main(["table", "tiny", "--format", form]) == 0
        texts[form] = capsys.readouterr().out
    assert "| rgm" in texts["md"]
    assert {line["row"] for line in csv.DictReader(texts["csv"].splitlines())} == {"joint", "remixing", "rgm"}
    assert json.loads(texts["json"])["experiment"] == "tiny"
    assert r"\begin{tabular}" in texts["latex"]


def test_a_table_is_written_in_all_formats_beside_its_comparison(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished / "results" / "tables"
    assert main(["table", "tiny", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["tiny.csv", "tiny.json", "tiny.md", "tiny.tex"]
    assert (out / "tiny.md").read_text().strip() == printed.strip()
    assert main(["table", "tiny", "--out", str(out), "--against", str(out / "tiny.json")]) == 0
    comparison = (out / "tiny_reference.md").read_text()
    assert "6 cells compared, 6 identical" in comparison
    assert comparison in capsys.readouterr().out


@pytest.mark.usefixtures("finished")
def test_a_table_of_another_selection_rule_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "tiny", "--selection", "last", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["selection"] == "last"


def test_a_failed_cell_shows_in_the_table_with_its_reason(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(home / "results")
    first, *others = load_experiment("tiny").cells()
    store.fail(first, "CellError", "Training loss became nan.")
    for cell in others:
        store.write(cell, fake_cells.record(cell))
    assert main(["table", "tiny"]) == 0
    output = capsys.readouterr().out
    assert "(n=2)" in output
    assert "Training loss became nan." in output


def test_a_damaged_result_stops_the_table_with_one_sentence(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((finished / "results" / "cells").rglob("*.json"))
    file.write_text("{")
    assert main(["table", "tiny"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: Result {file} is truncated or corrupt")
    assert error.count("\n") == 1


def test_a_full_disk_ends_in_one_sentence_and_status_1(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished / "full"
    out.mkdir()
    (out / f".tiny.md.{os.getpid()}.partial").symlink_to("/dev/full")
    assert main(["table", "tiny", "--out", str(out)]) == 1
    assert f"Error: Cannot write {out / 'tiny.md'}: the disk is full. Free some space" in capsys.readouterr().err

    def no_space(_kind: str) -> None:
        raise OSError(28, "No space left on device", "data/raw")

    monkeypatch.setattr("benchmark.cli._registered", no_space)
    assert main(["list", "methods"]) == 1
    assert "Error: Cannot write data/raw: the disk is full." in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_a_dataset_without_sources_needs_no_download_and_is_prepared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fetch", "digits"]) == 0
    assert capsys.readouterr().out == "digits needs no download.\n"
    assert main(["prepare", "digits"]) == 0
    assert "digits is prepared in " in capsys.readouterr().out


@pytest.mark.usefixtures("home")
def test_a_dataset_that_was_not_fetched_says_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dataset", "av_digits", "--method", "joint", "--experiment", "tiny"]) == 1
    assert "Run `equipoise fetch av_digits`, then `equipoise prepare av_digits`." in capsys.readouterr().err


def test_check_passes_the_names_on_and_ends_with_the_status_of_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[tuple[str, ...]] = []

    def run(names: tuple[str, ...]) -> int:
        checked.append(names)
        return len(checked) - 1

    monkeypatch.setitem(sys.modules, "benchmark.conformance", SimpleNamespace(run=run))
    assert main(["check", "--all"]) == 0
    assert main(["check", "rgm", "joint"]) == 1
    assert checked == [(), ("rgm", "joint")]


def test_bench_ends_with_the_status_of_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmark.bench", SimpleNamespace(run=lambda *_: 1))
    assert main(["bench"]) == 1


def test_another_package_named_datasets_is_named(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    result = equipoise("prepare", "digits", prefix=f"sys.path.insert(0, {str(tmp_path)!r})")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"Package 'datasets' resolves to {tmp_path / 'datasets'}" in result.stderr
    assert "run from the project's own environment" in result.stderr


def test_outside_a_project_the_call_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    assert main(["status"]) == 2
    assert "No params.yaml in" in capsys.readouterr().err


def test_python_m_benchmark_is_equipoise() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "benchmark", "--help"],
        cwd=SOURCE_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: equipoise" in result.stdout
