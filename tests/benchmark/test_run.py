"""From a cell's configuration to its method: authors' options, published weights, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.ogm_ge import OGMGE
from benchmark import run
from benchmark.errors import DataError, UsageError
from benchmark.protocol import Cell, Protocol
from benchmark.registry import BACKBONES
from benchmark.training import initialised

OFFICIAL = {"digits": {"alpha": 0.3, "end": 0.9}}


def cell(**changes: Any) -> Cell:
    fields = {"dataset": "digits", "backbone": "resnet18", "fusion": "concat", "method": "joint", "seed": 0}
    return Cell(**{**fields, "protocol": Protocol(epochs=1), **changes})


def alpha_and_end(**changes: Any) -> tuple[float, float]:
    options = run.build_method(cell(method="ogm_ge", **changes)).options
    return options.alpha, options.end


def test_the_authors_options_apply_where_a_cell_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OGMGE, "official", OFFICIAL)
    assert alpha_and_end() == (0.8, 0.5)
    assert alpha_and_end(official=True) == (0.3, 0.9)
    assert alpha_and_end(official=True, options={"alpha": 0.1}) == (0.1, 0.9)


def test_an_encoder_starts_from_the_published_weights_and_the_head_as_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(7)
    encoder = BACKBONES.load("resnet18")((3, 8, 8))
    published = {name.removeprefix("network."): value for name, value in encoder.state_dict().items()}
    monkeypatch.setattr(run, "weights", lambda _backbone, _name, _shape: published)
    plain, loaded = (initialised(run.build_method(cell(weights=name)), 0).state_dict() for name in (None, "imagenet"))
    name = "encoders.upper.network.layer1.0.conv1.weight"
    assert torch.equal(loaded[name], published["layer1.0.conv1.weight"])
    assert not torch.equal(plain[name], loaded[name])
    assert torch.equal(plain["head.weight"], loaded["head.weight"])


def test_looking_for_widths_takes_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "weights", lambda *_: {"other": torch.zeros(1)})
    task = run.build_method(cell(weights="imagenet")).task
    assert task.widths == {"upper": 512, "lower": 512}
    with pytest.raises(DataError, match="These weights do not fit"):
        task.encoders()


def test_unknown_weights_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"weights of backbone 'resnet18' 'imagnet'\. Did you mean 'imagenet'"):
        run.check_cell(cell(weights="imagnet"))


def test_weights_that_are_not_here_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    run.check_cell(cell(weights="imagenet"))
    with pytest.raises(DataError, match="Run `equipoise fetch resnet18`"):
        run.build_method(cell(weights="imagenet"))


def test_a_record_says_what_its_data_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    for kept in (run._data, run._parts):
        kept.cache_clear()
    record = run.run_cell(cell(backbone="small", protocol=Protocol(epochs=1, batch_size=512)))
    data = record["provenance"]["data"]
    assert data == run.described("digits", "stratified") == run.described("digits", None)
    assert data["split"] == "stratified"
    assert data["samples"] == {part: len(own) for part, own in run._data("digits", None, "cpu").parts.items()}
    assert data["digest"] == run._data("digits", None, "cpu").digest
    assert data["census"] == {}
