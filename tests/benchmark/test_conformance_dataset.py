"""Every registered dataset that needs no download conforms; and the checks themselves can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from benchmark.conformance import check_registered
from benchmark.conformance_dataset import CHECKS, check_dataset
from benchmark.conformance_trial import Outcome
from benchmark.data import Batch, Part, TaskData
from benchmark.registry import DATASETS


@pytest.fixture(autouse=True)
def _own_data_home(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))


@pytest.mark.parametrize("name", [n for n in DATASETS.names() if not DATASETS.load(n).card.sources])
def test_dataset_conforms(name: str) -> None:
    records = list(check_dataset(name))
    assert len(records) == len(DATASETS.load(name).card.splits) * (len(CHECKS) + 1)
    assert [f"{r.check}: {r.reason}" for r in records if r.outcome is not Outcome.PASSED] == []


def test_a_dataset_that_is_not_here_is_refused_with_what_to_do() -> None:
    record, *more = check_dataset("av_digits")
    assert record.outcome is Outcome.REFUSED
    assert "equipoise fetch av_digits" in record.reason
    assert more == []


def test_methods_and_datasets_are_checked_by_name() -> None:
    assert next(check_registered(["digits"])).check == "opens stratified"
    assert next(check_registered(["joint"])).check == "finite"


class Shaky(Part):
    """A part whose augmentation no generator controls."""

    def batches(self, *arguments: object, **named: object) -> Iterator[Batch]:
        for batch in super().batches(*arguments, **named):  # type: ignore[arg-type]
            free = torch.Generator()
            free.seed()
            yield replace(batch, inputs={k: v + torch.rand(v.shape, generator=free) for k, v in batch.inputs.items()})


def data(kind: type[Part] = Part, change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> TaskData:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(120, 6, generator=generator)
    inputs = {"a": change((values - values.mean()) / values.std())}
    part = kind.from_tensors(inputs, torch.arange(120) % 3)
    parts = dict.fromkeys(("train", "val", "test"), part)
    return TaskData(parts=parts, modalities=("a",), shapes={"a": (6,)}, classes=("x", "y", "z"), domains=(), digest="")


def holed(values: torch.Tensor) -> torch.Tensor:
    values = values.clone()
    values[5, 2] = float("nan")
    return values


@pytest.mark.parametrize(
    ("check", "faulty", "problem"),
    [
        ("finite", data(change=holed), "train/a has values that are not finite"),
        ("finite", data(change=torch.Tensor.double), "torch.float64"),
        ("normalised", data(change=lambda x: x + 1), "a: mean 1.0"),
        ("normalised", data(change=lambda x: 3 * x), "standard deviation"),
        ("normalised", replace(data(change=lambda x: x + 1), zeros={"a": 128.0}), "standard deviation 1.41"),
        ("classes", replace(data(), classes=("x", "y", "z", "absent")), "part train has no sample of class absent"),
        ("deterministic", data(Shaky), "two passes of one seed differ"),
    ],
)
def test_a_fault_is_found(check: str, faulty: TaskData, problem: str) -> None:
    assert problem in CHECKS[check](faulty)
    assert CHECKS[check](data()) == ""


def test_a_signed_modality_may_have_another_mean_than_zero() -> None:
    moved = data(change=lambda x: 0.6 * x + 0.8)
    assert "mean 0.8" in CHECKS["normalised"](moved)
    assert CHECKS["normalised"](replace(moved, zeros={"a": 128.0})) == ""
