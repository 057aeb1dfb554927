"""Tables from hand-made result records: selection, marks, families, missing cells, every output format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from benchmark.errors import DataError, SchemaError, UsageError
from benchmark.protocol import Cell, Experiment, validated
from benchmark.rendering import marks, render
from benchmark.statistics import hedges_g, smallest_detectable_difference, t_interval, welch
from benchmark.tables import Table, build_table
from benchmark.version import RESULT_SCHEMA

Record = dict[str, Any]
DIGITS = ("digits", "small", "concat")

# Accuracy in % per seed; the same rows on every dataset.
VALUES = {
    "joint": [90.0, 90.4, 89.6, 90.2, 89.8],
    "pcgrad (modality)": [90.1, 90.6, 89.9, 90.3, 89.8],
    "pcgrad (losses)": [80.0, 80.4, 79.6, 80.2, 79.8],
    "rgm": [95.0, 95.4, 94.6, 95.2, 94.8],
    "rgm (printed)": [94.9, 95.5, 94.5, 95.1, 94.7],
}


def experiment(**changes: Any) -> Experiment:
    fields = {
        "name": "fixture",
        "title": "Fixture",
        "datasets": ["digits"],
        "backbones": ["small"],
        "protocol": {"epochs": 3},
        "baselines": {
            "joint": None,
            "pcgrad": {"modality": {"between": "modality"}, "losses": {"between": "losses"}},
        },
        "proposed": {"rgm": {"": None, "printed": {"orthogonalisation": "printed"}}},
        **changes,
    }
    return validated(Experiment, fields, "fixture")


def record(cell: Cell, accuracy: float, balance: float = 0.5) -> Record:
    """A run whose best validation epoch is the second of three; test accuracy peaks in the last one."""
    part = {"macro_f1": accuracy / 100 - 0.01, "loss": 0.1, "unimodal": {}}
    history = [(0.50, accuracy - 20), (0.90, accuracy), (0.80, accuracy + 2)]
    return {
        "schema": 1,
        "key": f"key-{cell.describe()}",
        "cell": json.loads(json.dumps(cell.identity())),
        "epochs": [
            {
                "epoch": epoch,
                "val": {**part, "accuracy": val},
                "test": {**part, "accuracy": test / 100},
                "balance_factor": 0.0,
            }
            for epoch, (val, test) in enumerate(history)
        ],
        "balance_factor": balance,
        "provenance": {
            "commit": "c0ffee",
            "dirty": False,
            "versions": {"python": "3.11.9", "torch": "2.11.0"},
            "device": "cpu: x86_64",
            "finished": "2026-11-01T00:00:00+00:00",
        },
    }


def records(of: Experiment, values: Mapping[str, list[float]] = VALUES) -> list[Record]:
    return [
        record(of.cell(row, column, seed), value)
        for column in of.columns()
        for row in of.rows()
        for seed, value in enumerate(values[row.label])
    ]


@pytest.fixture(scope="module")
def table() -> Table:
    return build_table(experiment(), records(experiment()))


def outcomes(table: Table, row: str) -> Iterator[tuple[str, str, str]]:
    for comparison in table.entry(row, DIGITS, "accuracy").comparisons:
        yield comparison.family, comparison.against, comparison.outcome


def test_rows_keep_the_experiments_order_and_proposed_rows_are_tagged(table: Table) -> None:
    assert [(row.label, row.tag) for row in table.rows] == [
        ("joint", ""),
        ("pcgrad (modality)", ""),
        ("pcgrad (losses)", ""),
        ("rgm", "P1"),
        ("rgm (printed)", "P2"),
    ]


def test_an_entry_holds_percent_mean_sd_n_and_t_interval(table: Table) -> None:
    entry = table.entry("joint", DIGITS, "accuracy")
    assert entry.values == pytest.approx(VALUES["joint"])
    assert entry.seeds == (0, 1, 2, 3, 4)
    assert (entry.mean, entry.sd) == pytest.approx((90.0, 0.1**0.5))
    interval = t_interval(VALUES["joint"])
    assert (entry.low, entry.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("rule", "expected"), [("best_val", 90.0), ("last", 92.0)])
def test_the_selection_rule_chooses_the_epoch(rule: Any, expected: float) -> None:
    found = build_table(experiment(), records(experiment()), selection=rule)
    assert found.entry("joint", DIGITS, "accuracy").mean == pytest.approx(expected)


def test_equal_validation_accuracies_go_to_the_earliest_epoch() -> None:
    made = records(experiment())
    for item in made:
        item["epochs"][2]["val"]["accuracy"] = item["epochs"][1]["val"]["accuracy"]
    assert build_table(experiment(), made).entry("joint", DIGITS, "accuracy").mean == pytest.approx(90.0)


def test_best_test_only_adds_a_labelled_column_without_marks() -> None:
    found = build_table(experiment(), records(experiment()), selection="best_test")
    assert found.entry("joint", DIGITS, "accuracy").mean == pytest.approx(90.0)
    peeked = found.entry("rgm", DIGITS, "accuracy_best_test")
    assert peeked.mean == pytest.approx(97.0)
    assert (peeked.best, peeked.second, peeked.comparisons) == (False, False, ())
    assert "epoch selected on test" in render(found, "md").splitlines()[2]


def test_the_balance_factor_is_the_one_at_the_end_of_training(table: Table) -> None:
    assert table.entry("rgm", DIGITS, "balance_factor").mean == 0.5


def test_bold_is_the_best_mean_and_underline_the_second(table: Table) -> None:
    accuracy = [entry for entry in table.entries if entry.measure == "accuracy"]
    assert [entry.row for entry in accuracy if entry.best] == ["rgm"]
    assert [entry.row for entry in accuracy if entry.second] == ["rgm (printed)"]


def test_equal_means_share_the_bold(table: Table) -> None:
    balance = [entry for entry in table.entries if entry.measure == "balance_factor"]
    assert all(entry.best and not entry.second for entry in balance)


def test_both_families_have_the_sizes_declared_beforehand(table: Table) -> None:
    assert table.families == {"reference": 4, "proposed": 6}
    found = [c.family for entry in table.entries for c in entry.comparisons]
    assert (found.count("reference"), found.count("proposed"), found.count("best")) == (4, 6, 4)


def test_every_method_is_tested_against_joint_with_holm_inside_the_family(table: Table) -> None:
    entry = table.entry("rgm (printed)", DIGITS, "accuracy")
    (found,) = (c for c in entry.comparisons if c.family == "reference")
    # Third smallest p of four, each below the next one's threshold: multiplied by 2.
    p = {row: welch(values, VALUES["joint"]).p for row, values in VALUES.items() if row != "joint"}
    assert sorted(p, key=lambda row: p[row]) == [
        "pcgrad (losses)",
        "rgm",
        "rgm (printed)",
        "pcgrad (modality)",
    ]
    assert found.p == pytest.approx(p["rgm (printed)"])
    assert found.p_holm == pytest.approx(2 * p["rgm (printed)"])
    assert found.difference == pytest.approx(4.94)
    assert found.hedges_g == pytest.approx(hedges_g(VALUES["rgm (printed)"], VALUES["joint"]))


def test_outcomes_say_better_worse_or_open(table: Table) -> None:
    assert list(outcomes(table, "rgm")) == [("reference", "joint", "better")]
    assert ("reference", "joint", "worse") in outcomes(table, "pcgrad (losses)")
    assert ("reference", "joint", "open") in outcomes(table, "pcgrad (modality)")
    assert ("proposed", "rgm", "worse") in outcomes(table, "pcgrad (modality)")
    assert ("best", "rgm", "open") in outcomes(table, "rgm (printed)")


def test_marks_follow_the_outcomes(table: Table) -> None:
    found = {row.label: marks(table, table.entry(row.label, DIGITS, "accuracy")) for row in table.rows}
    assert found == {
        "joint": ["↓P1,P2"],
        "pcgrad (modality)": ["↓P1,P2"],
        "pcgrad (losses)": ["‡", "↓P1,P2"],
        "rgm": ["†"],
        "rgm (printed)": ["†", "≈"],
    }


def test_the_smallest_detectable_difference_uses_the_pooled_sd_of_the_column(table: Table) -> None:
    (found,) = table.detectable
    variances = [e.sd**2 for e in table.entries if e.measure == "accuracy" and e.sd is not None]
    assert found.sd == pytest.approx((sum(variances) / 5) ** 0.5)
    assert found.single == pytest.approx(smallest_detectable_difference(found.sd, 5))
    assert found.family == pytest.approx(smallest_detectable_difference(found.sd, 5, 0.05 / 6))


def test_a_missing_seed_shows_n_and_takes_part_in_no_comparison() -> None:
    made = [r for r in records(experiment()) if not (r["cell"]["method"] == "rgm" and r["cell"]["seed"] == 2)]
    found = build_table(experiment(), made)
    entry = found.entry("rgm", DIGITS, "accuracy")
    assert (entry.seeds, entry.best, entry.second, marks(found, entry)) == ((0, 1, 3, 4), False, False, [])
    assert {c.outcome for c in entry.comparisons} == {"untested"}
    assert "95.10 ± 0.26 (n=4)" in render(found, "md")
    assert "Missing: rgm, rgm (printed) on digits/small/concat, seeds 2: not run." in render(found, "md")


def test_rows_whose_data_are_not_here_say_in_one_line_how_to_get_them() -> None:
    found = build_table(experiment(), [], absent={"digits": "fetch them"})
    assert render(found, "md").count("Missing: ") == 1
    assert "Missing: every row on digits/small/concat, seeds 0, 1, 2, 3, 4: fetch them." in render(found, "md")


SEARCH = {"protocol": {"optimizer.lr": [0.01, 0.1]}, "methods": {"rgm": {"blocks": [1, 8]}}}


def tuned(**chosen: Any) -> Experiment:
    return experiment(
        tuning={"trials": 4, "seeds": 2, "search": SEARCH}, tuned={"digits/small/concat": chosen} if chosen else {}
    )


def test_the_footer_names_the_budget_the_search_space_and_what_was_chosen() -> None:
    chosen = {"joint": {"protocol": {"optimizer.lr": 0.1}}, "rgm": {"options": {"blocks": 1}}}
    found = tuned(**chosen)
    text = render(build_table(found, records(found)), "md")
    assert "4 trials, the untuned values first, each on 2 seed(s) that the table does not use" in text
    assert "Search space: every row: optimizer.lr in {0.01, 0.1}; rgm: blocks in {1, 8}." in text
    assert "Chosen: joint: optimizer.lr=0.1; rgm: blocks=1." in text
    assert "Not tuned (untuned values): pcgrad (modality), pcgrad (losses), rgm (printed)." in text


def test_the_cells_of_a_tuned_row_carry_what_was_chosen() -> None:
    found = tuned(rgm={"protocol": {"optimizer.lr": 0.1}, "options": {"blocks": 1}})
    rgm, printed = (row for row in found.rows() if row.proposed)
    assert found.cell(rgm, DIGITS, 0).options == {"blocks": 1}
    assert found.cell(rgm, DIGITS, 0).protocol.optimizer.lr == 0.1
    assert found.cell(printed, DIGITS, 0).protocol == found.protocol


def test_two_rows_with_the_same_cells_show_the_same_numbers() -> None:
    found = tuned(rgm={"options": {"orthogonalisation": "printed"}})
    made = {json.dumps(r["cell"], sort_keys=True): r for r in records(found)}
    table = build_table(found, made.values())
    assert table.entry("rgm", DIGITS, "accuracy").values == table.entry("rgm (printed)", DIGITS, "accuracy").values


def test_an_incomplete_row_never_shares_the_bold() -> None:
    values = {**VALUES, "rgm": [94.0, 96.0, 95.0], "rgm (printed)": [94.0, 96.0, 95.0, 95.0, 95.0]}
    found = build_table(experiment(), records(experiment(), values))
    incomplete, complete = (found.entry(row, DIGITS, "accuracy") for row in ("rgm", "rgm (printed)"))
    assert incomplete.mean == complete.mean
    assert (incomplete.best, complete.best) == (False, True)


def test_a_missing_seed_does_not_shrink_the_family() -> None:
    made = [r for r in records(experiment()) if not (r["cell"]["method"] == "rgm" and r["cell"]["seed"] == 2)]
    (found,) = (
        c
        for c in build_table(experiment(), made).entry("pcgrad (losses)", DIGITS, "accuracy").comparisons
        if c.family == "reference"
    )
    assert found.p is not None
    assert found.p_holm == pytest.approx(4 * found.p)


def test_a_row_without_any_seed_shows_missing() -> None:
    made = [r for r in records(experiment()) if r["cell"].get("options") != {"between": "losses"}]
    text = render(build_table(experiment(), made), "md")
    assert "|pcgrad(losses)|missing|missing|" in text.replace(" ", "")


def test_a_table_without_any_result_still_renders_in_every_format() -> None:
    found = build_table(experiment(), [])
    assert found.detectable == ()
    assert [len(render(found, form)) > 100 for form in ("md", "csv", "json", "latex")] == [True] * 4


def test_a_failed_seed_is_named_with_its_reason() -> None:
    made = records(experiment())
    failed = made.pop(0)
    failure = {"cell": failed["cell"], "error": "CellError: the loss is not finite at step 7."}
    text = render(build_table(experiment(), made, failures=[failure]), "md")
    assert "Missing: joint on digits/small/concat, seeds 0: CellError: the loss is not finite at step 7.\n" in text


def test_zero_variance_in_two_cells_is_a_warning_and_in_one_is_not() -> None:
    one = {**VALUES, "joint": [90.0] * 5}
    two = {**one, "rgm": [95.0] * 5}
    assert "Warning" not in render(build_table(experiment(), records(experiment(), one)), "md")
    found = build_table(experiment(), records(experiment(), two))
    assert "Warning: zero variance over the seeds in 2 entries (joint on" in render(found, "md")
    assert ("reference", "joint", "untested") in outcomes(found, "rgm")


def test_a_single_seed_has_no_spread_and_no_test() -> None:
    single = experiment(seeds=1)
    found = build_table(single, records(single, {row: values[:1] for row, values in VALUES.items()}))
    assert "**95.00**" in render(found, "md")
    assert found.detectable == ()
    assert {c.outcome for entry in found.entries for c in entry.comparisons} == {"untested"}


def test_several_datasets_get_prefixes_and_a_mean_rank_and_one_does_not(table: Table) -> None:
    assert table.ranks == ()
    both = experiment(datasets=["digits", "av_digits"])
    made = records(both)
    for item in made:
        if item["cell"]["dataset"] == "av_digits" and item["cell"]["method"] == "joint":
            item["epochs"][1]["test"]["accuracy"] = 0.99
    found = build_table(both, made)
    assert {rank.row: rank.mean for rank in found.ranks}["joint"] == (4 + 1) / 2
    header = render(found, "md").splitlines()[2]
    assert "digits · accuracy (%)" in header
    assert "av_digits · accuracy (%)" in header
    assert "mean rank" in header


def test_records_of_other_cells_are_ignored(table: Table) -> None:
    other = experiment(protocol={"epochs": 4})
    assert build_table(experiment(), [*records(experiment()), *records(other)]) == table


@pytest.mark.parametrize("schema", [RESULT_SCHEMA + 1, None, "1"])
def test_a_record_with_an_unknown_schema_is_refused(schema: object) -> None:
    made = records(experiment())
    made[0]["schema"] = schema
    with pytest.raises(SchemaError, match=rf"has schema .*, this version reads up to {RESULT_SCHEMA}\. Update"):
        build_table(experiment(), made)


def test_two_different_records_for_one_cell_are_refused() -> None:
    made = records(experiment())
    with pytest.raises(DataError, match="Two results"):
        build_table(experiment(), [*made, {**made[0], "key": "another"}])


def test_two_rows_of_one_configuration_share_their_records() -> None:
    twins = experiment(proposed={"rgm": {"": None, "again": None}})
    values = {**VALUES, "rgm (again)": VALUES["rgm"]}
    found = build_table(twins, records(twins, values))
    assert [found.entry(row, DIGITS, "accuracy").best for row in ("rgm", "rgm (again)")] == [True, True]


@pytest.mark.parametrize("damage", [{"epochs": []}, {"epochs": [{}]}, {"balance_factor": None}])
def test_a_record_without_its_numbers_is_named(damage: Record) -> None:
    made = records(experiment())
    made[0] |= damage
    with pytest.raises(DataError, match=r"key-digits/small/concat/joint seed 0 has no usable"):
        build_table(experiment(), made)


def test_markdown_in_full(table: Table) -> None:
    assert render(table, "md").splitlines()[:8] == [
        "# Fixture",
        "",
        "| method             | accuracy (%)            | balance factor   |",
        "|:-------------------|:------------------------|:-----------------|",
        "| joint              | 90.00 ± 0.32 ↓P1,P2     | **0.50 ± 0.00**  |",
        "| pcgrad (modality)  | 90.14 ± 0.32 ↓P1,P2     | **0.50 ± 0.00**  |",
        "| pcgrad (losses)    | 80.00 ± 0.32 ‡ ↓P1,P2   | **0.50 ± 0.00**  |",
        "| rgm [P1]           | **95.00 ± 0.32** †      | **0.50 ± 0.00**  |",
    ]
    assert "| rgm (printed) [P2] | <u>94.94 ± 0.38</u> † ≈ |" in render(table, "md")


def test_the_footer_names_the_rows_with_a_protocol_of_their_own() -> None:
    of = experiment(proposed={"rgm": {"": {}, "printed": {"protocol.reversal": 0.5, "gate": "printed"}}})
    text = render(build_table(of, records(of)), "md")
    assert "- Rows with a protocol of their own: rgm (printed): protocol.reversal=0.5." in text
    assert "protocol of their own" not in render(build_table(experiment(), records(experiment())), "md")


def test_the_footer_names_test_families_protocol_selection_origin_and_command(table: Table) -> None:
    text = render(table, "md")
    for part in (
        "over n = 5 seeds (0 to 4)",
        "every row against joint (4 comparisons), proposed against baselines (6 comparisons)",
        "Smallest detectable difference in accuracy (%) (power 0.8, 5 seeds per arm, pooled SD): 0.6",
        "Data: digits; backbone: small; fusion: concat. Protocol: epochs=3, batch_size=64, optimizer",
        "Selection: best_val, the epoch with the best validation accuracy",
        "Commit: c0ffee. Versions: python 3.11.9, torch 2.11.0. Device: cpu: x86_64.",
        "- Regenerate: `equipoise table fixture --format md --selection best_val`",
    ):
        assert part in text


def test_uncommitted_changes_and_several_commits_are_named() -> None:
    made = records(experiment())
    made[0]["provenance"] |= {"commit": "beef", "dirty": True}
    assert "Commit: beef (with uncommitted changes), c0ffee." in render(build_table(experiment(), made), "md")


def prepared(digest: str, census: Mapping[str, Mapping[str, int]] | None = None) -> Record:
    samples = {"train": 1254, "val": 180, "test": 363}
    return {"split": "stratified", "samples": samples, "census": census or {}, "digest": digest * 16}


def test_the_footer_says_how_many_samples_were_listed_found_and_used() -> None:
    made = records(experiment())
    counts = {"listed": 14799, "found": 13012, "used": 13009}
    for found in made:
        found["provenance"]["data"] = prepared("ab12", {"train": counts, "val": {"listed": 3}, "test": {"listed": 4}})
    text = render(build_table(experiment(), made), "md")
    line = "train 14,799 listed, 13,012 found, 13,009 used; val 3 listed; test 4 listed. Content: ab12ab12ab12."
    assert f"\n- Samples of digits (stratified): {line}\n" in text
    assert "prepared anew" not in text


def test_the_footer_counts_the_samples_where_nothing_else_is_known_and_cells_without_data_say_nothing() -> None:
    made = records(experiment())
    assert "Samples of" not in render(build_table(experiment(), made), "md")
    assert "data" not in json.loads(render(build_table(experiment(), made), "json"))
    made[0]["provenance"]["data"] = prepared("ab12")
    table = build_table(experiment(), made)
    assert "- Samples of digits (stratified): train 1,254 samples; val 180 samples; test 363 s" in render(table, "md")
    assert json.loads(render(table, "json"))["data"][0]["cells"] == 1


def test_cells_that_were_trained_on_other_content_are_a_warning() -> None:
    twins = experiment(proposed={"rgm": {"": None, "again": None}})
    made = records(twins, {**VALUES, "rgm (again)": VALUES["rgm"]})
    for number, found in enumerate(made):
        found["provenance"]["data"] = prepared("cd34" if number == 3 else "ab12")
    text = render(build_table(twins, made), "md")
    assert text.count("- Samples of digits") == 2
    assert (
        "- Warning: digits was prepared anew between cells, with other content (cells by content: ab12ab12ab12: 19, "
        "cd34cd34cd34: 1)." in text
    )


def test_a_record_whose_account_of_its_data_is_unreadable_is_named() -> None:
    made = records(experiment())
    made[0]["provenance"]["data"] = {"split": "stratified"}
    with pytest.raises(DataError, match=r"joint seed 0 has no usable account of its data"):
        build_table(experiment(), made)


def test_latex_escapes_names_and_translates_marks() -> None:
    named = experiment(title="50 % of A & B_1")
    text = render(build_table(named, records(named)), "latex")
    assert r"\caption{50 \% of A \& B\_1}" in text
    assert r"rgm [P1]           & \textbf{95.00 $\pm$ 0.32} $\dagger$" in text
    assert r"\underline{94.94 $\pm$ 0.38} $\dagger$ $\approx$" in text
    assert r"80.00 $\pm$ 0.32 $\ddagger$ $\downarrow$P1,P2" in text
    assert text.isascii()


def test_csv_has_one_line_per_number_with_interval_and_effect_sizes(table: Table) -> None:
    lines = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(lines) == 10
    (line,) = (found for found in lines if (found["row"], found["measure"]) == ("pcgrad (losses)", "accuracy"))
    assert (line["n"], line["vs_reference_outcome"], line["vs_P1_outcome"]) == ("5", "worse", "worse")
    assert float(line["vs_P1_hedges_g"]) == pytest.approx(hedges_g(VALUES["pcgrad (losses)"], VALUES["rgm"]))
    assert float(line["low"]) == pytest.approx(t_interval(VALUES["pcgrad (losses)"]).low)
    assert line["values"].split()[1] == f"1:{table.entry('pcgrad (losses)', DIGITS, 'accuracy').values[1]!r}"


def test_json_holds_everything_and_returns_the_values_bit_for_bit(table: Table) -> None:
    content = json.loads(render(table, "json"))
    assert content["schema"] == 1
    assert content["command"] == "equipoise table fixture --format json --selection best_val"
    entry = content["entries"][0]
    assert entry["values"] == list(table.entries[0].values)
    assert {c["family"]: c["p_holm"] for c in entry["comparisons"]}["proposed"] < 0.05


@pytest.mark.parametrize("form", ["md", "csv", "json", "latex"])
def test_rendering_does_not_depend_on_the_order_of_the_records(table: Table, form: Any) -> None:
    assert render(build_table(experiment(), records(experiment())[::-1]), form) == render(table, form)


def test_an_unknown_format_is_answered_with_the_list(table: Table) -> None:
    wrong: Any = "markdown"
    with pytest.raises(UsageError, match=r"Unknown table format 'markdown'\. .*Known: csv, json, latex, md"):
        render(table, wrong)


def with_final(of: Experiment, **changes: Any) -> list[Record]:
    """Records whose errors and calibration are the better, the higher the accuracy, plus `changes` to the first one."""
    made = records(of)
    for item in made:
        error = 1 - item["epochs"][1]["test"]["accuracy"]
        for epoch in item["epochs"]:
            epoch["test"]["missing"] = {"upper": 0.6 - error, "lower": 0.8 - error}
        found = {"ece": error, "auroc": 1 - error, "aurc": error / 10, "fpr95": 2 * error}
        graded = {"noise": [0.9, 0.8, 0.7], "blur": [0.6, 0.5, 0.4]}
        selected = {**found, "corrupted": {"upper": graded, "lower": {"noise": [0.65, 0.65, 0.65]}}}
        item |= {"schema": RESULT_SCHEMA, "final": {"best_val": selected, "last": {**selected, "ece": 0.5}}}
    made[0]["final"]["best_val"] |= changes
    return made


BEYOND = ("accuracy", "ece", "auroc", "aurc", "fpr95", "missing", "corrupted")


def test_columns_beyond_accuracy_are_in_percent_and_of_the_selected_epoch() -> None:
    beyond = experiment(metrics=BEYOND)
    found = build_table(beyond, with_final(beyond))
    means = {measure: found.entry("joint", DIGITS, measure).mean for measure in BEYOND}
    assert means == pytest.approx(
        {"accuracy": 90, "ece": 10, "auroc": 90, "aurc": 1, "fpr95": 20, "missing": 60, "corrupted": 65}
    )
    assert build_table(beyond, with_final(beyond), "last").entry("joint", DIGITS, "ece").mean == pytest.approx(50)
    assert build_table(beyond, with_final(beyond), "best_test").entry("joint", DIGITS, "ece").mean == pytest.approx(10)


def test_a_modality_alone_and_the_validation_part_are_columns_of_their_own() -> None:
    names = ["accuracy", "accuracy:upper", "val_accuracy", "val_accuracy:lower"]
    of = experiment(metrics=names)
    made = records(of)
    for item in made:
        for number, epoch in enumerate(item["epochs"]):
            epoch["test"]["unimodal"] = {"upper": 0.4 + number / 10, "lower": 0.1}
            epoch["val"]["unimodal"] = {"upper": 0.1, "lower": 0.3 + number / 10}
    found = build_table(of, made)
    chosen = max(made[0]["epochs"], key=lambda epoch: epoch["val"]["accuracy"])
    assert found.entry("joint", DIGITS, "accuracy:upper").mean == pytest.approx(
        100 * chosen["test"]["unimodal"]["upper"]
    )
    assert found.entry("joint", DIGITS, "val_accuracy").mean == pytest.approx(100 * chosen["val"]["accuracy"])
    assert found.entry("joint", DIGITS, "val_accuracy:lower").mean == pytest.approx(
        100 * chosen["val"]["unimodal"]["lower"]
    )
    assert "upper alone, accuracy (%)" in render(found, "md")
    assert "predicted from its features, the others zero" in render(found, "md")
    del made[0]["epochs"][1]["test"]["unimodal"]["upper"]
    assert build_table(of, made).entry(found.rows[0].label, DIGITS, "accuracy:upper").seeds == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("acuracy", "Unknown metric 'acuracy'.*accuracy"),
        ("ece:upper", "'ece:upper' is no metric of one modality: those are accuracy:NAME, val_accuracy:NAME"),
        ("accuracy:", "'accuracy:' is no metric of one modality"),
        ("accuracy:uper", "Unknown modality in a metric of experiment 'fixture' 'uper'.*upper"),
    ],
)
def test_a_metric_that_does_not_exist_is_refused(metric: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        experiment(metrics=["accuracy", metric])


def test_the_best_calibration_error_is_the_lowest_and_the_best_auroc_the_highest() -> None:
    beyond = experiment(metrics=BEYOND)
    found = build_table(beyond, with_final(beyond))
    for measure in ("ece", "auroc", "aurc", "fpr95", "missing"):
        entries = [entry for entry in found.entries if entry.measure == measure]
        assert [entry.row for entry in entries if entry.best] == ["rgm"]
        assert [entry.row for entry in entries if entry.second] == ["rgm (printed)"]
    assert "- Lower is better: calibration error (%), AURC (%), FPR at 95 % TPR (%)." in render(found, "md")


def test_a_first_measure_where_lower_is_better_turns_every_comparison_around() -> None:
    names = ["digits", "av_digits"]
    by_accuracy, by_error = (experiment(metrics=[metric], datasets=names) for metric in ("accuracy", "ece"))
    expected, found = (build_table(of, with_final(of)) for of in (by_accuracy, by_error))
    for row in VALUES:
        above, below = expected.entry(row, DIGITS, "accuracy"), found.entry(row, DIGITS, "ece")
        assert marks(found, below) == marks(expected, above)
        for c, other in zip(below.comparisons, above.comparisons, strict=True):
            assert (c.against, c.outcome) == (other.against, other.outcome)
            assert c.difference == pytest.approx(-(other.difference or 0))
    assert [(rank.row, rank.mean) for rank in found.ranks] == [(rank.row, rank.mean) for rank in expected.ranks]
    assert "significantly worse / better than proposed row P" in render(found, "md")


def test_a_seed_without_errors_has_no_auroc_and_leaves_the_entry_incomplete() -> None:
    beyond = experiment(metrics=["accuracy", "auroc"])
    entry = build_table(beyond, with_final(beyond, auroc=None)).entry("joint", DIGITS, "auroc")
    assert (entry.seeds, entry.complete, entry.best) == ((1, 2, 3, 4), False, False)


@pytest.mark.parametrize("metric", ["ece", "corrupted", "missing"])
def test_an_old_record_keeps_its_columns_and_is_named_where_it_lacks_a_new_one(metric: str) -> None:
    assert build_table(experiment(), records(experiment())).entries
    with pytest.raises(DataError, match=rf"has no usable {metric} .*Remove it and run the cell again"):
        build_table(experiment(metrics=[metric]), records(experiment()))
