"""The quick version of an experiment: a rehearsal in a minute, under a name of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmark.errors import UsageError
from benchmark.experiments import experiment_names, load_experiment
from benchmark.protocol import Experiment, validated
from tests.benchmark.workspace import equipoise, new_workspace

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
    home = new_workspace(tmp_path)
    started = time.perf_counter()
    for name in ("digits", "digits_dg"):
        for command in ("grid", "table"):
            output = equipoise(home, command, name, "--quick")
        assert "(quick version)" in output
        assert "| missing" not in output
    assert time.perf_counter() - started < QUICK_SECONDS
