"""The experiments that stand for a paper's tables: its rows and columns in its order, and nothing of it left out."""

from __future__ import annotations

import csv

import pytest

from benchmark.experiments import absent_data, load_experiment
from benchmark.paths import SOURCE_ROOT
from benchmark.published import published_for
from benchmark.rendering import render
from benchmark.run import check_cell
from benchmark.tables import build_table

RGM = ("rgm_table1", "rgm_table2", "rgm_table3")
GMP = ("gmp_table1", "gmp_table2", "gmp_table3", "gmp_table4", "gmp_table5")
BACKBONES = {"cnn": "resnet18", "transformer": "vit", "slowfast_resnet18": "slowfast"}


def printed(name: str) -> list[dict[str, str]]:
    paper, _, table = name.partition("_")
    with (SOURCE_ROOT / f"results/published/{paper}.csv").open(newline="") as stream:
        return [line for line in csv.DictReader(stream) if line["table"] == table]


@pytest.mark.parametrize("name", [*RGM, *GMP])
def test_rows_and_columns_are_the_papers_and_the_rows_in_its_order(name: str) -> None:
    experiment, lines = load_experiment(name), printed(name)
    rows = [(row.method, row.variant) for row in experiment.rows()]
    assert rows == list(dict.fromkeys((x["method"], x["variant"]) for x in lines))
    columns = dict.fromkeys((x["dataset"], BACKBONES[x["backbone"]], x["fusion"] or "concat") for x in lines)
    assert set(experiment.columns()) == set(columns)
    assert name in GMP or experiment.columns() == list(columns)


@pytest.mark.parametrize("name", [*RGM, *GMP])
def test_every_printed_number_stands_in_the_table(name: str) -> None:
    experiment, lines = load_experiment(name), printed(name)
    published = published_for(experiment)
    assert published is not None
    table = build_table(experiment, [], published=published)
    shown = [entry.published.value for entry in table.entries if entry.published]
    assert sorted(shown) == sorted(float(line["value"]) for line in lines)


@pytest.mark.parametrize("name", [*RGM, *GMP])
def test_a_table_without_its_data_renders_and_says_how_to_get_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.experiments.prepared_home", lambda dataset: SOURCE_ROOT / "nowhere" / dataset)
    experiment = load_experiment(name)
    text = render(build_table(experiment, [], absent=absent_data(experiment)), "md")
    for dataset in experiment.datasets:
        assert f"`equipoise fetch {dataset}`" in text
        assert f"`equipoise prepare {dataset}`, `equipoise grid {name}`" in text
    for dataset in experiment.weights:
        assert f"`equipoise fetch {dataset}`, `equipoise fetch {experiment.backbones[0]}`" in text


@pytest.mark.parametrize("name", [*RGM, *GMP])
def test_every_row_can_be_trained_on_every_dataset_and_backbone(name: str) -> None:
    experiment = load_experiment(name)
    for column in experiment.columns():
        for row in experiment.rows():
            check_cell(experiment.cell(row, column, 0, target=experiment.targets_of(column[0])[0]))


def test_the_protocol_is_the_papers_where_it_states_one() -> None:
    protocol = load_experiment("rgm_table1").protocol
    optimizer = protocol.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 1e-3, 0.9, 1e-4)
    assert protocol.batch_size == 64
    assert all(load_experiment(name).protocol == protocol for name in RGM)


def test_the_protocol_of_gmp_is_the_papers_where_it_states_one() -> None:
    for name in GMP:
        found = load_experiment(name)
        assert (found.protocol.optimizer.name, found.protocol.optimizer.lr, found.protocol.epochs) == ("adam", 1e-4, 20)
        assert (found.protocol.hidden, found.seeds, found.targets) == (256, 5, ("all",))
        assert set(found.weights) == set(found.datasets)


def test_ucf51_starts_from_imagenet_and_the_other_datasets_from_scratch() -> None:
    for name in RGM:
        cells = list(load_experiment(name).cells())
        assert {cell.weights for cell in cells if cell.dataset == "ucf51"} == {"imagenet"}
        assert {cell.weights for cell in cells if cell.dataset != "ucf51"} == {None}


@pytest.mark.parametrize("name", ["digits_rgm", "av_digits_rgm"])
def test_the_readings_of_rgm_vary_one_option_at_a_time_and_all_differ(name: str) -> None:
    rows = [row for row in load_experiment(name).rows() if row.method == "rgm"]
    assert rows[0].options == {}
    assert all(len(row.options) == 1 for row in rows[1:])
    assert len({str(row.options) for row in rows}) == len(rows)
