"""Configuration: frozen, validated, and one digest per meaning."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from benchmark.errors import UsageError
from benchmark.protocol import Cell, Experiment, Protocol, Row, Search, canonical, validated

FIELDS: dict[str, Any] = {
    "name": "trial",
    "title": "Trial",
    "datasets": ["digits"],
    "backbones": ["small"],
    "seeds": 3,
    "protocol": {"epochs": 2},
    "baselines": {"joint": None, "pcgrad": {"modality": None, "losses": {"reading": "losses"}}},
    "proposed": {"rgm": {}},
}


def experiment(**changes: Any) -> Experiment:
    return validated(Experiment, {**FIELDS, **changes}, "Experiment 'trial'")


def cell(**changes: Any) -> Cell:
    fields = {
        "dataset": "digits",
        "backbone": "small",
        "fusion": "concat",
        "method": "ogm_ge",
        "protocol": Protocol(epochs=2),
        "seed": 0,
    }
    return Cell(**{**fields, **changes})


def test_equal_numbers_have_one_text() -> None:
    assert canonical({"b": 1.0, "a": (1, 0.5)}) == '{"a":[1,0.5],"b":1}'


def test_rows_keep_the_order_baselines_then_proposed_with_one_row_per_variant() -> None:
    rows = experiment().rows()
    assert [row.label for row in rows] == ["joint", "pcgrad (modality)", "pcgrad (losses)", "rgm"]
    assert [row.proposed for row in rows] == [False, False, False, True]
    assert rows[2].options == {"reading": "losses"}


def test_a_row_may_change_the_protocol_for_itself() -> None:
    settings = {"protocol.optimizer.lr": 0.5, "blocks": 4}
    found = experiment(proposed={"rgm": {"": settings}})
    [row] = [row for row in found.rows() if row.proposed]
    assert (row.options, row.protocol, row.settings) == ({"blocks": 4}, {"optimizer.lr": 0.5}, settings | {})
    rates = {cell.method: (cell.protocol.optimizer.lr, cell.options) for cell in found.cells(("rgm", "joint"))}
    assert rates == {"rgm": (0.5, {"blocks": 4}), "joint": (0.001, {})}
    search = Search(protocol={"optimizer.lr": [0.1], "epochs": [3]}, methods={"rgm": {"blocks": [1], "gate": ["x"]}})
    assert search.space(row) == ({"epochs": [3]}, {"gate": ["x"]})


def test_a_composition_may_vary_what_its_parts_vary() -> None:
    search = Search(methods={"rna_net": {"alignment_weight": [1]}, "gmp": {"alpha_k": [0.1], "alpha_p": [0.1]}})
    row = Row(method="rna_net+gmp", options={"alpha_p": 0.2})
    assert search.space(row) == ({}, {"alignment_weight": [1], "alpha_k": [0.1]})


def test_a_row_cannot_change_what_the_protocol_does_not_have() -> None:
    with pytest.raises(UsageError, match=r"Unknown protocol field 'lr'"):
        experiment(proposed={"rgm": {"": {"protocol.lr": 0.5}}})


def test_the_columns_of_a_backbone_stand_side_by_side() -> None:
    found = experiment(datasets=["digits", "av_digits"], backbones=["small", "resnet18"]).columns()
    assert [column[:2] for column in found] == [
        ("digits", "small"),
        ("av_digits", "small"),
        ("digits", "resnet18"),
        ("av_digits", "resnet18"),
    ]


def test_a_grid_has_one_cell_per_row_and_seed() -> None:
    assert len(list(experiment().cells())) == 4 * 3
    assert {c.seed for c in experiment().cells(("joint",))} == {0, 1, 2}
    assert {c.method for c in experiment().cells(("joint",))} == {"joint"}


def test_an_unknown_key_names_itself_and_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"protocol\.epoch: Extra inputs are not permitted\. Found 3\."):
        experiment(protocol={"epochs": 2, "epoch": 3})


def test_a_value_out_of_range_names_field_and_value() -> None:
    with pytest.raises(UsageError, match=r"protocol\.optimizer\.momentum: .*less than 1\. Found 1\.5\."):
        experiment(protocol={"epochs": 2, "optimizer": {"momentum": 1.5}})


def test_an_unknown_method_in_an_experiment_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'rgm'"):
        experiment(proposed={"rgmm": {}})


def test_a_method_in_both_groups_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'joint' is a baseline and proposed\. Keep one"):
        experiment(proposed={"joint": None})


def test_infinite_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"protocol\.optimizer\.lr: Input should be a finite number\. Found inf"):
        experiment(protocol={"epochs": 2, "optimizer": {"lr": float("inf")}})


def test_a_reference_outside_the_rows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"reference 'joint' is not among its baselines \(ogm_ge\)"):
        experiment(baselines={"ogm_ge": {}})


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        cell().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"options": {"alpha": 0.5}},
        {"method": "joint"},
        {"fusion": "sum"},
        {"backbone": "resnet18"},
        {"dataset": "av_digits"},
        {"protocol": Protocol(epochs=3)},
    ],
)
def test_every_field_of_a_cell_changes_its_key(change: dict[str, Any]) -> None:
    assert cell(**change).key() != cell().key()


def test_the_protocol_version_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell().key()
    monkeypatch.setattr("benchmark.protocol.PROTOCOL_VERSION", 999)
    assert cell().key() != before


def test_a_whole_number_written_as_float_gives_the_same_key() -> None:
    assert cell(options={"alpha": 1.0}).key() == cell(options={"alpha": 1}).key()


def test_a_protocol_changes_by_the_names_of_its_fields() -> None:
    changed = Protocol(epochs=2).changed({"optimizer.lr": 0.5, "batch_size": 8})
    assert (changed.optimizer.lr, changed.batch_size, changed.epochs) == (0.5, 8, 2)


@pytest.mark.parametrize("name", ["lr", "optimizer.rate", "optimizer.lr.x", "optimizer"])
def test_a_protocol_refuses_a_field_it_has_not(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Protocol(epochs=2).changed({name: 0.5})


def test_a_search_leaves_out_what_the_row_fixes() -> None:
    search = {"protocol": {"optimizer.lr": [0.1]}, "methods": {"rgm": {"blocks": [1, 8], "gate": ["clamped"]}}}
    found = experiment(proposed={"rgm": {"one": {"blocks": 1}}}, tuning={"trials": 2, "search": search})
    assert found.tuning is not None
    assert found.tuning.search.space(found.rows()[-1]) == ({"optimizer.lr": [0.1]}, {"gate": ["clamped"]})


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"methods": {"rgn": {}}}, "Did you mean 'rgm'"),
        ({"protocol": {"optimizer.lr": []}}, r"optimizer\.lr has no values"),
    ],
)
def test_a_search_refuses_unknown_methods_and_empty_choices(search: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        experiment(tuning={"trials": 2, "search": search})


def test_weights_of_a_dataset_that_is_not_in_the_experiment_are_refused() -> None:
    with pytest.raises(UsageError, match="dataset with weights in experiment 'trial' 'cremad'"):
        experiment(weights={"cremad": "imagenet"})


def test_weights_and_official_options_are_part_of_the_cell() -> None:
    found = experiment(weights={"digits": "imagenet"}, official=True)
    first = next(found.cells())
    assert (first.weights, first.official) == ("imagenet", True)
    assert first.key() != next(experiment().cells()).key()


def test_a_cells_identity_names_what_differs_from_the_defaults() -> None:
    assert cell().identity() == {
        "dataset": "digits",
        "backbone": "small",
        "fusion": "concat",
        "method": "ogm_ge",
        "protocol": {"epochs": 2},
        "seed": 0,
    }
    spelled_out = cell(options={}, target=None, protocol=Protocol(epochs=2, batch_size=64))
    assert spelled_out.identity() == cell().identity()
