"""What a user does, on a look-alike of every dataset that has to be fetched: fetch, prepare, train, print a table."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark import executors
from benchmark.cli import main
from benchmark.dataset import Dataset, DatasetCard
from benchmark.executors import Outcome, Outcomes
from benchmark.registry import DATASETS
from tests.datasets.cells import tiny_backbone
from tests.datasets.epic_lookalike import write_epic
from tests.datasets.hac_lookalike import write_hac
from tests.datasets.kinetics_lookalike import write_kinetics_sounds
from tests.datasets.lookalikes import Lookalike, write_cremad
from tests.datasets.ucf51_lookalike import write_ucf51
from tests.http_server import serving

WRITERS: dict[str, Callable[[Path], Lookalike]] = {
    "cremad": write_cremad,
    "kinetics_sounds": write_kinetics_sounds,
    "ucf51": write_ucf51,
    "hac": write_hac,
    "hac_flow": write_hac,
    "epic_kitchens": write_epic,
    "epic_kitchens_flow": write_epic,
}
TARGETS = {"hac": "animal", "epic_kitchens": "D2"}
"""The domain that is left out of a dataset that has some."""


def here(function: Callable[[Any], Any], tasks: Sequence[Any], *, jobs: int | None = None) -> Outcomes[Any, Any]:
    """Run cells in this process, where the look-alike's card is."""
    assert jobs is None
    for task in tasks:
        yield Outcome(task, function(task))


@contextmanager
def changed(patch: pytest.MonkeyPatch, kind: type[Dataset], card: DatasetCard) -> Iterator[str]:
    """Give a dataset the look-alike's card, and cells an executor and a backbone of their own."""
    patch.setattr(kind, "card", card)
    patch.setattr(executors, "load", lambda _name: here)
    with tiny_backbone() as backbone:
        yield backbone


def experiment(dataset: str, backbone: str, target: str | None) -> dict[str, Any]:
    return {
        "title": "Over HTTP",
        "datasets": [dataset],
        "backbones": [backbone],
        "seeds": 1,
        "protocol": {"epochs": 1, "batch_size": 8, "hidden": 8, "optimizer": {"lr": 0.01}},
        "baselines": {"joint": {}},
        "proposed": {"gmp" if target else "rgm": {}},
        "targets": [target] if target else [],
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith("_flow") else ()) for name in WRITERS]
)
def test_a_table_comes_from_a_server_that_is_busy_at_first_and_cuts_connections(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, served = DATASETS.load(name), tmp_path / "served"
    target = TARGETS.get(name.removesuffix("_flow"))
    written = WRITERS[name](served)
    by_hand = [source.file for source in written.cards[kind].sources if source.suffix]
    with serving() as server, changed(monkeypatch, kind, written.at(server.url).cards[kind]) as backbone:
        server.serve_folder(served)
        for number, path in enumerate(sorted(server.content)):
            server.answers[path] = [*(("503",), ("cut",), (), ())[number % 4], "whole"]
        monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
        content = {"experiments": {"over_http": experiment(name, backbone, target)}}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))

        raw = tmp_path / "data" / "raw" / kind.card.raw_name
        for folder in by_hand:
            assert main(["fetch", name]) == 1
            assert f"{folder} has to be brought by hand" in capsys.readouterr().err
            shutil.copytree(served / folder, raw / folder)
        assert main(["fetch", name]) == 0
        assert ", 0 broken" in capsys.readouterr().out
        assert not list(raw.rglob("*.part"))
        asked = len(server.requests)
        assert main(["fetch", name]) == 0
        assert len(server.requests) == asked
        assert main(["prepare", name]) == 0
        assert main(["grid", "over_http"]) == 0
        capsys.readouterr()
        assert main(["table", "over_http"]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [[cell.strip(" *<u>/") for cell in line.split("|")[1:]] for line in shown if line.startswith("| ")]
    trained = {cells[0].split()[0]: float(cells[1].split()[0]) for cells in rows[-2:]}
    assert list(trained) == ["joint", "gmp" if target else "rgm"]
    assert all(0 <= accuracy <= 100 for accuracy in trained.values())
