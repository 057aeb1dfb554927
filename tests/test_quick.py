"""The quick version of an experiment: a rehearsal in a minute, under a name of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.errors import UsageError
from benchmark.experiments import experiment_names, load_experiment
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Experiment, validated

QUICK_SECONDS = 90
"""For both embedded protocols together, with their tables."""


def labels(experiment: Experiment) -> list[str]:
    return [row.label for row in experiment.rows()]


def epochs(experiment: Experiment) -> int:
    return sum(cell.protocol.epochs for cell in experiment.cells())


def test_it_has_the_reference_the_proposed_methods_three_epochs_and_three_seeds() -> None:
    found = load_experiment("digits_dg_quick")
    assert (found.name, found.seeds, found.protocol.epochs) == ("digits_dg_quick", 3, 3)
    assert labels(found) == ["joint", "gmp", "gmp_bench"]
    assert not found.tuned
    assert load_experiment("digits_dg").protocol.changed({"epochs": 3}) == found.protocol


def test_without_proposed_methods_every_baseline_keeps_its_first_variant() -> None:
    assert labels(load_experiment("digits_dg_gmp_quick")) == ["base", "gmp (full)"]


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_has_one_that_is_valid_and_shorter(name: str) -> None:
    whole, short = load_experiment(name, untuned=True), load_experiment(f"{name}_quick")
    assert validated(Experiment, short.model_dump(), short.name) == short
    assert set(labels(short)) <= set(labels(whole))
    assert epochs(short) < epochs(whole)


def test_the_quick_version_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown experiment 'digitts_quick'"):
        load_experiment("digitts_quick")


@pytest.mark.timing
def test_both_protocols_rehearse_in_a_minute_and_a_half(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").symlink_to(SOURCE_ROOT / "params.yaml")
    environment = {**os.environ, "EQUIPOISE_HOME": str(tmp_path), "PYTHONPATH": str(SOURCE_ROOT)}
    started = time.perf_counter()
    for name in ("digits", "digits_dg"):
        for command in ("grid", "table"):
            arguments = [sys.executable, "-m", "benchmark", command, name, "--quick"]
            done = subprocess.run(
                arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
            )
            assert done.returncode == 0, done.stderr
        assert "(quick version)" in done.stdout
        assert "| missing" not in done.stdout
    assert time.perf_counter() - started < QUICK_SECONDS
