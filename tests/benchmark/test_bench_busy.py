"""How busy a GPU is: what waits is found, and on a GPU the floor holds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark import bench_busy
from benchmark.bench import Workload
from benchmark.bench_busy import Busy, busy, share
from benchmark.data import Batch, Part
from benchmark.method import REFERENCE
from benchmark.preparation import prepare
from benchmark.registry import METHODS
from benchmark.training import initialised
from datasets.cremad import CREMAD
from tests.datasets.many import write_many

WORK = Workload("small", {"upper": (1, 3, 8), "lower": (1, 5, 8)}, batch_size=8, steps=4, epochs=1, bare_limit=9.0)


def test_a_share_below_nine_tenths_is_under() -> None:
    low, high = (Busy("cuda: H100", 1024, value) for value in (0.89, 0.9))
    assert low.under
    assert not high.under
    assert str(low) == "cuda: H100 trains ResNet-18 in 89% of an epoch of 1024 samples in batches of 64, at least 90%"


def test_the_share_falls_with_the_time_that_batches_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_busy, "BATCH", WORK.batch_size)
    monkeypatch.setattr(bench_busy, "clock", time.perf_counter)
    kind = METHODS.load(REFERENCE)
    model, part = initialised(kind(kind.Options(), WORK.task()), 0), WORK.parts()["train"]
    plain = Part.batches
    assert share(model, part, rounds=3) > 0.5

    def late(self: Part, *given: Any, **options: Any) -> Iterator[Batch]:
        for batch in plain(self, *given, **options):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(Part, "batches", late)
    assert share(model, part, rounds=3) < 0.5


def test_an_epoch_is_one_of_resnet18_on_the_prepared_training_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    monkeypatch.setattr(bench_busy, "CLIPS", 40)
    found = busy("digits", rounds=1)
    assert found.samples == 40
    assert found.device.startswith(("cpu", "cuda"))
    assert found.share > 0.5


@pytest.mark.gpu
def test_a_gpu_trains_in_nine_tenths_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lookalike = write_many(tmp_path / "raw" / "cremad", 600, published_size=False)
    monkeypatch.setattr(CREMAD, "card", lookalike.cards[CREMAD])
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    prepare("cremad", say=lambda _: None)
    found = busy("cremad", rounds=5)
    sys.stdout.write(f"{found}\n")
    assert not found.under
