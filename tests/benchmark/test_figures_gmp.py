"""The figures of the GMP paper from hand-made result records: what is plotted, what is paired, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from benchmark.figures import modulation, sensitivity, structure, trajectories
from benchmark.figures.group import NothingToDraw
from benchmark.protocol import Experiment, Row
from benchmark.statistics import t_interval
from tests.benchmark.fake_runs import Record, experiment, hosts, only, records, sweep


def with_notes(of: Experiment, notes: dict[str, float], **more: dict[int, dict[str, float]]) -> list[Record]:
    """Records whose epochs all have these notes; `more` are those of a method instead, by epoch from 0."""
    made = records(of)
    for item in made:
        for epoch in item["epochs"]:
            own = more.get(item["cell"]["method"])
            epoch["notes"] = notes if own is None else own.get(epoch["epoch"], {})
    return made


def drawn(of: Experiment, made: list[Record]) -> trajectories.Trajectories:
    return trajectories.trajectories(only(of, made))


def test_a_trajectory_is_the_mean_over_seeds_between_the_smallest_and_the_largest() -> None:
    of = experiment(baselines={"joint": None}, proposed={})
    found = drawn(of, records(of))
    ratio, warmth = found.quantities
    [panel] = ratio.panels
    assert (ratio.name, panel.row, panel.seeds) == ("log rho", "joint", (0, 1))
    upper, lower = panel.lines
    assert upper == trajectories.Line("upper", (1, 2), mean=(1.0, 2.0), low=(0.5, 1.5), high=(1.5, 2.5))
    assert lower == trajectories.Line("lower", (1, 2), mean=(-0.5, -1.5), low=(-0.5, -1.5), high=(-0.5, -1.5))
    assert [line.part for line in warmth.panels[0].lines] == [""]
    assert found.parts == ("upper", "lower", "")


@pytest.mark.parametrize(
    ("name", "quantity", "part"),
    [
        ("log rho, upper", "log rho", "upper"),
        ("weight of lower", "weight", "lower"),
        ("weight of fused", "weight", "fused"),
        ("weight of unimodal lower", "weight of unimodal", "lower"),
        ("share of steps, task, upper", "share of steps, task", "upper"),
        ("temperature", "temperature", ""),
        ("upper", "upper", ""),
    ],
)
def test_a_noted_name_ends_in_its_part(name: str, quantity: str, part: str) -> None:
    names = ["log rho, upper", "weight of lower", "weight of unimodal lower", "share of steps, task, upper", name]
    assert trajectories.split_names(names, ["upper", "lower"])[name] == (quantity, part)


def test_a_trajectory_is_the_mean_over_targets() -> None:
    of = hosts(2, 1)
    made = records(of)
    for item in made:
        item["epochs"][0]["notes"] = {"warmth": {"r0": 1.0, "r30": 2.0, "r60": 6.0}[item["cell"]["target"]]}
    [quantity] = drawn(of, made).quantities
    assert quantity.panels[0].lines[0].mean == (3.0,)


def test_only_the_epochs_and_seeds_that_note_a_number_count() -> None:
    of = experiment(baselines={"joint": None}, proposed={}, protocol={"epochs": 4})
    made = with_notes(of, {}, joint={0: {"warmth": 1.0}, 3: {"warmth": 2.0}})
    made[1]["epochs"][0]["notes"] = {"warmth": float("nan")}
    [quantity] = drawn(of, made).quantities
    assert quantity.panels[0].lines[0].epochs == (1, 4)
    assert quantity.panels[0].lines[0].mean == (1.0, 2.0)


def test_rows_share_a_quantity_only_if_they_share_a_method() -> None:
    of = experiment()
    found = drawn(of, with_notes(of, {"warmth": 1.0}))
    assert [[panel.row for panel in q.panels] for q in found.quantities] == [["joint"], ["pcgrad (losses)"], ["rgm"]]
    of = experiment(baselines={"joint": None, "rna_net": None}, proposed={"gmp": None, "rna_net+gmp": None})
    found = drawn(of, with_notes(of, {"warmth": 1.0}, rna_net={0: {"norm": 1.0}}, joint={}))
    assert [(q.name, [panel.row for panel in q.panels]) for q in found.quantities] == [
        ("norm", ["rna_net"]),
        ("warmth", ["gmp", "rna_net+gmp"]),
    ]
    assert found.notes[-1] == "Nothing noted: joint."


def test_without_any_note_there_are_no_trajectories() -> None:
    of = experiment()
    with pytest.raises(NothingToDraw, match="No method of experiment 'fixture' notes a number while it trains"):
        drawn(of, with_notes(of, {}))


def test_a_quantity_starts_on_a_new_line_unless_it_fits_into_the_rest_of_one() -> None:
    assert trajectories.slots([2, 1, 2, 4, 1], 3) == [[0, 1], [2], [3, 4], [6, 7, 8, 9], [10]]


def sensitivity_of(of: Experiment) -> sensitivity.Sensitivity:
    return sensitivity.sensitivity(only(of, records(of)))


def test_an_option_has_a_panel_with_its_values_in_order_and_the_default_among_them() -> None:
    name, other = "strength_of_relearning_0", "strength_of_relearning_1"
    variants = {
        "high": {name: 1.0},
        "default": {},
        "low": {name: -1.0},
        "other": {other: 2},
        "both": {name: 1, other: 1},
    }
    of = experiment(proposed={"rgm": variants})
    found = sensitivity_of(of)
    assert [(panel.method, panel.option, panel.reference, panel.default) for panel in found.panels] == [
        ("rgm", name, "rgm (default)", 0.0),
        ("rgm", other, "rgm (default)", 0.0),
    ]
    assert [(value, item.row) for value, item in found.panels[0].points] == [
        (-1.0, "rgm (low)"),
        (0.0, "rgm (default)"),
        (1.0, "rgm (high)"),
    ]
    item = found.panels[0].points[0][1]
    assert item.values == pytest.approx((80, 82))
    assert item.half is not None
    assert (item.mean - item.half, item.mean + item.half) == pytest.approx(
        (t_interval([80, 82]).low, t_interval([80, 82]).high)
    )
    assert found.baseline is not None
    assert found.baseline.row == "joint"
    assert found.baseline.mean == pytest.approx(81)


def test_a_field_of_the_protocol_that_rows_change_has_a_panel_as_an_option_has() -> None:
    variants = {"default": {}, "weak": {"protocol.reversal": 0.1}, "slow": {"protocol.optimizer.lr": 1e-4}}
    found = sensitivity_of(experiment(proposed={"rgm": variants}))
    assert {panel.option: [value for value, _ in panel.points] for panel in found.panels} == {
        "protocol.reversal": [0.1, 1.0],
        "protocol.optimizer.lr": [1e-4, 1e-3],
    }


def test_of_one_option_alone_the_row_that_sets_nothing_is_the_default() -> None:
    [panel] = sensitivity_of(
        experiment(baselines={"joint": None}, proposed={"rgm": {"a": {"number": 1}, "b": {"number": 2}}})
    ).panels
    assert panel.reference == "rgm (a)"
    name = "strength_of_relearning_0"
    [panel] = sensitivity_of(experiment(proposed={"rgm": {"a": {name: 1}, "default": {}}})).panels
    assert (panel.reference, panel.default) == ("rgm (default)", 0.0)


@pytest.mark.parametrize(
    ("one", "other", "option"),
    [
        ({"a": 1, "b": "x"}, {"a": 0.5, "b": "x"}, "a"),
        ({"a": 1}, {"a": 1.0}, None),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, None),
        ({"a": True}, {"a": False}, None),
        ({"a": "x"}, {"a": "y"}, None),
        ({"a": None}, {"a": 1}, None),
        ({"a": 1}, {}, None),
    ],
)
def test_a_row_belongs_to_a_panel_if_one_number_alone_differs(
    one: dict[str, Any], other: dict[str, Any], option: str | None
) -> None:
    assert sensitivity.changed_option(one, other) == option


def test_an_option_that_differs_between_the_runs_of_a_row_is_none_of_its_options() -> None:
    of = sweep(2)
    made = records(of)
    for item in made:
        if item["cell"]["method"] == "rgm":
            item["options"]["strength_of_relearning_0"] += item["cell"]["seed"]
    with pytest.raises(NothingToDraw):
        sensitivity.sensitivity(only(of, made))


def test_rows_that_change_no_single_number_have_no_sensitivity() -> None:
    with pytest.raises(
        NothingToDraw, match="'fixture' has no two finished rows of one method that differ in one numeric"
    ):
        sensitivity_of(experiment())


def test_a_single_seed_has_no_interval_and_is_named() -> None:
    of = sweep(2).model_copy(update={"seeds": 1})
    found = sensitivity_of(of)
    assert [item.half for _, item in found.panels[0].points] == [None, None]
    assert found.notes[-1] == "One seed, no interval: rgm (default), rgm (strength_of_relearning_0), joint."


def rows(*names: str) -> list[Row]:
    return [Row(method=name.partition(" ")[0], variant=name.partition(" ")[2]) for name in names]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["base", "host", "gmp", "host+gmp"], [("base", "gmp", "gmp"), ("host", "host+gmp", "gmp")]),
        (["base", "host a", "host b", "host+gmp b"], [("host (b)", "host+gmp (b)", "gmp")]),
        (["base", "host", "host+gmp fast"], [("host", "host+gmp (fast)", "gmp")]),
        (["base", "host a", "host b", "host+gmp"], [(None, "host+gmp", "gmp")]),
        (["base", "host+gmp"], [(None, "host+gmp", "gmp")]),
        (["base", "gmp"], []),
    ],
)
def test_a_row_with_a_modulation_is_paired_with_the_one_without(
    names: list[str], pairs: list[tuple[str | None, str, str]]
) -> None:
    found = modulation.paired(rows(*names), "base")
    assert [(a and a.label, b.label, name) for a, b, name in found] == pairs


def around() -> Experiment:
    return experiment(
        datasets=["digits_dg"],
        targets=["all"],
        reference="base",
        baselines={"base": None, "rna_net": None, "simmmdg": None},
        proposed={"gmp": None, "rna_net+gmp": None, "simmmdg+gmp": None},
    )


def helped(of: Experiment) -> list[Record]:
    """Records in which the modulation adds 3 points on r0 and 6 on r30."""
    made = records(of)
    for item in made:
        gain = {"r0": 0.03, "r30": 0.06, "r60": 0.0}[item["cell"]["target"]] * ("gmp" in item["cell"]["method"])
        for epoch in item["epochs"]:
            epoch["test"] = {**epoch["test"], "accuracy": epoch["test"]["accuracy"] + gain}
    return made


def test_every_pair_has_bars_for_the_mean_and_for_each_target() -> None:
    of = around()
    found = modulation.modulation(only(of, helped(of)))
    assert found.places == ("mean over targets", "r0", "r30", "r60")
    assert [(pair.host, pair.place) for pair in found.pairs[:5]] == [
        *(("base", place) for place in found.places),
        ("rna_net", "mean over targets"),
    ]
    assert [pair.gain for pair in found.pairs[:5]] == pytest.approx([3, 3, 6, 0, 3])
    mean = found.pairs[0]
    assert mean.without.values == pytest.approx((80, 82))
    assert mean.with_it.values == pytest.approx((83, 85))
    assert mean.with_it.sd == pytest.approx(2**0.5)


def test_a_pair_of_which_one_row_is_not_finished_is_left_out_and_named() -> None:
    of = around()
    made = [item for item in helped(of) if item["cell"]["method"] not in ("simmmdg", "rna_net+gmp")]
    found = modulation.modulation(only(of, made))
    assert {pair.host for pair in found.pairs} == {"base"}
    assert found.notes[-1] == "Not both finished, left out: rna_net and rna_net+gmp, simmmdg and simmmdg+gmp."


def test_without_targets_there_is_one_panel() -> None:
    of = experiment(reference="rna_net", baselines={"rna_net": None}, proposed={"rna_net+gmp": None})
    found = modulation.modulation(only(of, records(of)))
    assert found.places == ("accuracy",)


def test_without_a_pair_there_is_no_modulation() -> None:
    of = experiment()
    with pytest.raises(NothingToDraw, match="'fixture' has no finished row `host` with its `host\\+modulation`"):
        modulation.modulation(only(of, records(of)))


def test_the_structure_is_that_of_the_first_run_with_features() -> None:
    of = around()
    made = [item for item in records(of) if item["cell"]["method"] in ("base", "rna_net")]
    for item in made:
        if item["cell"]["method"] == "rna_net" or (item["cell"]["seed"], item["cell"]["target"]) != (1, "r60"):
            item["final"] = {"best_val": {}, "last": {}}
    found = structure.structure(only(of, made))
    [panel] = found.panels
    assert (panel.row, panel.seed, panel.target) == ("base", 1, "r60")
    assert found.domains == ("r0", "r30", "r60 (target)")
    assert panel.domains == ("r0",) * 4 + ("r30",) * 4 + ("r60 (target)",) * 4
    assert panel.classes == (0, 1, 2) * 4
    assert len(set(panel.places)) == 12
    assert panel.silhouette_class is not None
    assert panel.silhouette_domain is not None
    assert panel.silhouette_class > 0.8 > 0.1 > panel.silhouette_domain
    assert found.notes[-1] == "No features recorded, left out: rna_net."
    assert "hold at least 95 % of the variance" in " ".join(found.notes)


def test_without_domains_the_structure_is_that_of_the_test_part() -> None:
    of = experiment(baselines={"joint": None}, proposed={}, seeds=1)
    made = records(of)
    recorded = made[0]["final"]["best_val"]["features"]
    made[0]["final"]["best_val"]["features"] = {**recorded, "sources": [], "domains": [None] * 12}
    [panel] = structure.structure(only(of, made)).panels
    assert set(panel.domains) == {"test part"}
    assert panel.silhouette_domain is None


def test_without_recorded_features_there_is_no_structure() -> None:
    of = experiment()
    made = [{**item, "final": {}} for item in records(of)]
    with pytest.raises(NothingToDraw, match=r"'fixture' has recorded features\. Give its protocol `features`"):
        structure.structure(only(of, made))
