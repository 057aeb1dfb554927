"""Cells per hour of the local executor, and how they are measured."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmark.bench_grid import cells_per_hour, utilisation
from benchmark.cli import main
from benchmark.executors.devices import cores
from benchmark.experiments import load_experiment
from benchmark.preparation import obtain

SEEDS = 2


@pytest.mark.timing
@pytest.mark.skipif(cores() < 2, reason="one core: nothing to run side by side")
def test_two_workers_finish_at_least_1_8_times_the_cells_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path / "data"))
    obtain("digits")
    cells = [cell for cell in load_experiment("digits").cells() if cell.seed < SEEDS]
    found = {jobs: cells_per_hour(cells, jobs, tmp_path / str(jobs)) for jobs in (1, 2)}
    gain = found[2] / found[1]
    sys.stdout.write(f"cells per hour: {found[1]:.0f} with one worker, {found[2]:.0f} with two, {gain:.2f} times\n")
    assert gain >= 1.8


def test_every_number_of_workers_trains_the_chosen_cells_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["bench", "--grid", "digits_quick", "--method", "joint", "-j", "1", "-j", "2"]) == 0
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if "cells per hour" in line]
    assert [line.split(":")[0].strip() for line in lines] == ["1 side by side", "2 side by side"]
    assert lines[0].endswith("1.00x")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--method", "nothing"), "has no method 'nothing'"),
        (("--backbone", "nothing"), "'nothing'"),
        (("--input", "cremad"), "Give --input or --grid, not both"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_trained(
    options: tuple[str, str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    assert main(["bench", "--grid", "digits_quick", *options]) == 2
    assert reason in capsys.readouterr().err


def test_the_gpus_in_use_are_watched_as_long_as_the_work_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\ncase "$*" in *utilization*--id=1,3) echo 80; echo 90; exec sleep 60;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    started = time.monotonic()
    with utilisation() as busy:
        time.sleep(0.5)
    assert busy.percents == [80, 90]
    assert str(busy) == ", GPU busy 85% of the time"
    assert time.monotonic() - started < 30
