"""What a user gets wrong ends in one sentence and the right exit status, before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.paths import SOURCE_ROOT


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(SOURCE_ROOT / "params.yaml", tmp_path)
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("method", "setting", "sentence"),
    [
        ("ogm_ge", "alpha=much", "Options of method 'ogm_ge': alpha: Input should be a valid number"),
        ("ogm_ge", "alpha=-1", "alpha: Input should be greater than or equal to 0. Found -1."),
        ("ogm_ge", "alfa=0.5", "alfa: Extra inputs are not permitted. Found 0.5. Known: alpha"),
        ("rgm", "gate=open", "gate: Input should be 'printed' or 'clamped'. Found 'open'."),
        ("rgm", "blocks=7", "blocks=7 does not divide"),
        ("unimodal", "modality=middle", "has no modality 'middle'; choose one of upper, lower"),
        ("g_blending", "weights={fused: 0.5}", "weights must sum to 1, found 0.5"),
    ],
)
def test_a_wrong_option_is_refused_before_training(
    method: str, setting: str, sentence: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--dataset", "digits", "--method", method, "--set", setting]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not (workspace / "results").exists()


def test_a_required_option_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dataset", "digits", "--method", "unimodal"]) == 2
    assert "Options of method 'unimodal': modality: Field required." in capsys.readouterr().err


def test_one_wrong_option_in_a_grid_stops_it_before_its_first_cell(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("rgm: {}", "rgm: {wide: {blocks: 0}}"))
    assert main(["grid", "digits"]) == 2
    assert "Options of method 'rgm': blocks: Input should be greater than or equal to 1" in capsys.readouterr().err
    assert not list(workspace.glob("results/cells/**/*.json"))


def test_a_dataset_that_was_not_fetched_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dataset", "av_digits", "--method", "joint", "--experiment", "av_digits"]) == 1
    assert "equipoise fetch av_digits" in capsys.readouterr().err


def test_a_diverging_cell_fails_alone_with_its_reason(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("lr: 0.01", "lr: 1.0e+30").replace("epochs: 25", "epochs: 2"))
    assert main(["run", "--dataset", "digits", "--method", "joint", "--seeds", "1"]) == 1
    assert "Training loss became" in capsys.readouterr().err
    assert len(list(workspace.glob("results/work/*/error.json"))) == 1
    assert not list(workspace.glob("results/cells/**/*.json"))
