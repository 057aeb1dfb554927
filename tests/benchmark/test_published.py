"""Published numbers: the committed files, finding the number beside ours, and the verdict."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.errors import DataError, UsageError
from benchmark.protocol import Experiment, Row, validated
from benchmark.published import Field, judge, load_published, published_for
from benchmark.rendering import render
from benchmark.tables import build_table

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
OURS = [72.0, 73.0, 72.5, 72.8, 72.2]  # mean 72.5, 95 % t interval 72.003 to 72.997
PROTOCOL: Mapping[str, Field] = {"optimizer": "sgd", "lr": 0.001, "epochs": 100, "seeds": 5}


def test_every_printed_number_of_both_papers_is_there_once() -> None:
    counts = {"rgm": (150, 60, 24), "gmp": (28, 16, 16, 26, 16)}
    for paper, tables in counts.items():
        found = [load_published(paper, f"table{place}", PUBLISHED).numbers for place in range(1, len(tables) + 1)]
        assert tuple(len(numbers) for numbers in found) == tables
        keys = [(n.table, n.method, n.variant, n.dataset, n.backbone, n.fusion, n.metric) for t in found for n in t]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("table", "row", "column", "metric", "value"),
    [
        ("table1", Row(method="joint"), ("cremad", "resnet18", "concat"), "accuracy", 67.47),
        ("table1", Row(method="rgm"), ("kinetics_sounds", "resnet18", "concat"), "balance_factor", 0.77),
        (
            "table2",
            Row(method="pcgrad", variant="losses"),
            ("ucf51", "resnet18", "concat"),
            "accuracy",
            71.22,
        ),
        ("table3", Row(method="rgm", variant="ear+syn"), ("cremad", "resnet18", "concat"), "accuracy", 73.51),
    ],
)
def test_a_row_of_ours_finds_its_printed_number(
    table: str, row: Row, column: tuple[str, str, str], metric: str, value: float
) -> None:
    assert load_published("rgm", table, PUBLISHED).value(row, column, metric) == value


@pytest.mark.parametrize(
    ("row", "column", "metric"),
    [
        (Row(method="greedy"), ("cremad", "resnet18", "concat"), "balance_factor"),
        (Row(method="joint"), ("digits", "resnet18", "concat"), "accuracy"),
        (Row(method="joint"), ("cremad", "small", "concat"), "accuracy"),
        (Row(method="joint"), ("cremad", "resnet18", "film"), "accuracy"),
        (Row(method="joint"), ("cremad", "resnet18", "concat"), "macro_f1"),
    ],
)
def test_what_the_paper_does_not_print_has_no_number(row: Row, column: tuple[str, str, str], metric: str) -> None:
    assert load_published("rgm", "table1", PUBLISHED).value(row, column, metric) is None


@pytest.mark.parametrize(
    ("table", "row", "metric", "value"),
    [
        ("table1", Row(method="unimodal", variant="video"), "val_accuracy:video", 74.55),
        ("table1", Row(method="base"), "val_accuracy", 76.31),
        ("table1", Row(method="gmp"), "accuracy:audio", 35.88),
        ("table1", Row(method="gmp"), "accuracy", 57.36),
        ("table2", Row(method="gmp"), "accuracy", 57.36),
        ("table3", Row(method="cmrf+gmp"), "accuracy", 62.30),
        ("table3", Row(method="cmrf"), "accuracy", 60.60),
        ("table4", Row(method="base"), "accuracy", 55.06),
    ],
)
def test_a_row_of_gmps_tables_finds_its_printed_number(table: str, row: Row, metric: str, value: float) -> None:
    numbers = load_published("gmp", table, PUBLISHED)
    assert numbers.value(row, ("epic_kitchens", "slowfast", "concat"), metric) == value


def test_a_fusion_of_gmps_table_5_finds_its_own_number() -> None:
    table = load_published("gmp", "table5", PUBLISHED)
    found = [table.value(Row(method="gmp"), ("hac", "slowfast", f), "accuracy") for f in ("gated", "sum", "film")]
    assert found == [61.33, 63.21, 63.04]


def test_a_value_inside_the_interval_under_the_same_protocol_is_reproduced() -> None:
    found = judge(72.9, OURS, PROTOCOL, {"optimizer": "sgd", "lr": 1e-3, "epochs": 100})
    assert (found.outcome, found.inside, found.reason) == ("reproduced", True, "")


def test_a_value_outside_the_interval_differs() -> None:
    found = judge(73.1, OURS, PROTOCOL, {"optimizer": "sgd"})
    assert (found.outcome, found.inside) == ("differs", False)


def test_a_declared_tolerance_widens_what_counts_as_reproduced() -> None:
    assert judge(73.1, OURS, PROTOCOL, {}, tolerance=0.7).outcome == "reproduced"
    assert judge(73.3, OURS, PROTOCOL, {}, tolerance=0.7).outcome == "differs"


def test_a_differing_field_is_named_with_both_values() -> None:
    found = judge(72.5, OURS, PROTOCOL, {"optimizer": "adam", "epochs": 20, "lr": 0.001})
    assert found.outcome == "not comparable"
    assert found.reason == "differs: optimizer (ours sgd, published adam), epochs (ours 100, published 20)"


def test_a_field_that_either_side_does_not_give_is_named_and_the_numbers_are_still_compared() -> None:
    found = judge(72.5, OURS, PROTOCOL, {"epochs": None, "initialisation": "scratch", "optimizer": "sgd"})
    assert (found.outcome, found.inside) == ("not comparable", True)
    assert found.reason == "unknown: epochs, initialisation"


@pytest.mark.parametrize(("seeds", "outcome"), [(4, "not comparable"), (5, "reproduced"), (10, "reproduced")])
def test_more_seeds_than_the_paper_are_no_difference_and_fewer_are(seeds: int, outcome: str) -> None:
    assert judge(72.5, OURS, {"seeds": seeds}, {"seeds": 5}).outcome == outcome


def test_one_seed_has_no_interval_and_is_judged_by_the_tolerance_alone() -> None:
    assert judge(72.5, [72.5], PROTOCOL, {}).outcome == "reproduced"
    assert judge(72.6, [72.5], PROTOCOL, {}).outcome == "differs"


def experiment(**changes: Any) -> Experiment:
    fields = {
        "name": "beside",
        "title": "Beside",
        "datasets": ["digits"],
        "backbones": ["resnet18"],
        "seeds": 2,
        "protocol": {"epochs": 20, "optimizer": {"name": "adam", "lr": 1e-4}},
        "baselines": {"joint": None, "pcgrad": None},
        "published": {"paper": "invented", "table": "table1"},
    }
    return validated(Experiment, fields | changes, "beside")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paper = {
        "title": "A. Author. An invented paper.",
        "backbones": {"resnet18": "cnn"},
        "metrics": {"accuracy": ["accuracy"]},
        "tolerance": {"accuracy": 0.1},
        "protocol": {"optimizer": "adam", "lr": 0.0001, "epochs": 20},
        "datasets": {},
    }
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump({"invented": paper}))
    (tmp_path / "invented.csv").write_text(
        "table,method,variant,dataset,backbone,fusion,metric,value\n"
        "table1,joint,,digits,cnn,concat,accuracy,90.05\n"
        "table1,pcgrad,,digits,cnn,concat,accuracy,95.00\n"
    )
    return tmp_path


def records(of: Experiment) -> list[dict[str, Any]]:
    epoch = {"val": {"accuracy": 0.9}, "test": {"accuracy": 0.9}}
    return [
        {"schema": 1, "key": "k", "cell": cell.identity(), "epochs": [epoch], "balance_factor": 0.0}
        for cell in of.cells()
    ]


def test_the_table_shows_the_published_number_and_the_verdict(folder: Path) -> None:
    found = build_table(experiment(), records(experiment()), published=published_for(experiment(), folder))
    text = render(found, "md")
    assert "90.05 (reproduced)" in text
    assert "95.00 (differs)" in text
    assert "Published: A. Author. An invented paper." in text


def test_the_published_number_stands_beside_a_cell_that_has_not_run(folder: Path) -> None:
    text = render(build_table(experiment(), [], published=published_for(experiment(), folder)), "md")
    assert "| joint    | missing        | 90.05 (not run)" in text


def test_the_table_names_what_prevents_a_comparison_once(folder: Path) -> None:
    other = experiment(protocol={"epochs": 30, "optimizer": {"name": "adam", "lr": 1e-4}})
    text = render(build_table(other, records(other), published=published_for(other, folder)), "md")
    assert "90.05 (not comparable [1])" in text
    assert text.count("[1] Not comparable, differs: epochs (ours 30, published 20).") == 1


def test_a_paper_that_selected_on_test_is_compared_with_the_labelled_column(folder: Path) -> None:
    protocols = yaml.safe_load((folder / "protocols.yaml").read_text())
    protocols["invented"]["protocol"]["selection"] = "best_test"
    (folder / "protocols.yaml").write_text(yaml.safe_dump(protocols))
    found = build_table(experiment(), records(experiment()), "best_test", published_for(experiment(), folder))
    column = ("digits", "resnet18", "concat")
    proper, labelled = (found.entry("joint", column, name) for name in ("accuracy", "accuracy_best_test"))
    assert proper.published is not None
    assert proper.published.differing == ("selection (ours best_val, published best_test)",)
    assert labelled.published is not None
    assert labelled.published.outcome == "reproduced"


def test_an_experiment_without_a_published_table_has_none() -> None:
    assert published_for(experiment(published=None)) is None


def test_gmps_protocol_is_known_where_the_paper_gives_it() -> None:
    domains = experiment(datasets=["digits"], published={"paper": "gmp", "table": "table2"})
    published = published_for(domains, PUBLISHED)
    assert published is not None
    assert (published.paper.protocol["selection"], published.paper.protocol["batch_size"]) == (
        "best_val",
        None,
    )


def test_an_unknown_paper_or_table_is_answered_with_the_list(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"No published paper 'rmg' .* Known: gmp, rgm\."):
        load_published("rmg", "table1", PUBLISHED)
    with pytest.raises(UsageError, match=r"No 'table9' of paper 'invented' .* Known: table1\."):
        load_published("invented", "table9", folder)


@pytest.mark.parametrize("line", ["table1,joint,,digits,cnn,concat,accuracy,n/a", "table1,joint,,digits,cnn,90.0"])
def test_a_damaged_number_is_named(folder: Path, line: str) -> None:
    with (folder / "invented.csv").open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(DataError, match=r"invented\.csv: unreadable line"):
        load_published("invented", "table1", folder)


def test_an_unknown_protocol_key_is_refused(folder: Path) -> None:
    shutil.copy(PUBLISHED / "rgm.csv", folder)
    protocols = yaml.safe_load((PUBLISHED / "protocols.yaml").read_text())
    protocols["rgm"]["momentum"] = 0.9
    (folder / "protocols.yaml").write_text(yaml.safe_dump(protocols))
    with pytest.raises(UsageError, match=r"rgm in .*: momentum: .* Found 0\.9\. Known: title"):
        load_published("rgm", "table1", folder)
