"""A fresh table against a committed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.errors import DataError, SchemaError, UsageError
from benchmark.reference import compare_tables, load_table
from benchmark.statistics import welch

STABLE = [97.0, 97.2, 96.8, 97.1, 96.9]
NOISY = [97.05, 97.15, 96.85, 97.0, 96.95]
LOWER = [90.0, 90.2, 89.8, 90.1, 89.9]


def table(**values: list[float]) -> dict[str, Any]:
    place = {"dataset": "digits", "backbone": "small", "fusion": "concat", "measure": "accuracy"}
    return {
        "schema": 1,
        "experiment": "digits",
        "selection": "best_val",
        "seeds": 5,
        "protocol": {"epochs": 25, "optimizer": {"lr": 0.01}},
        "entries": [
            {"row": row, **place, "seeds": list(range(len(found))), "values": found} for row, found in values.items()
        ],
    }


def outcomes(fresh: dict[str, Any], reference: dict[str, Any]) -> dict[str, str]:
    return {cell.place[0]: cell.outcome for cell in compare_tables(fresh, reference).cells}


def test_the_same_values_seed_by_seed_are_identical() -> None:
    found = compare_tables(table(joint=STABLE, rgm=LOWER), json.loads(json.dumps(table(joint=STABLE, rgm=LOWER))))
    assert [cell.outcome for cell in found.cells] == ["identical", "identical"]
    assert found.reproduced
    assert found.summary() == (
        "digits against the reference: 2 cells compared, 2 identical, 0 within seed noise, 0 different."
    )


def test_a_change_in_the_last_bit_is_no_longer_identical() -> None:
    changed = [97.00000000000001, *STABLE[1:]]
    assert changed != STABLE
    assert outcomes(table(joint=changed), table(joint=STABLE)) == {"joint": "within seed noise"}


def test_the_same_values_for_other_seeds_are_not_identical() -> None:
    assert outcomes(table(joint=STABLE[::-1]), table(joint=STABLE)) == {"joint": "within seed noise"}


def test_a_shift_beyond_the_seeds_is_different() -> None:
    found = compare_tables(table(joint=NOISY, rgm=LOWER), table(joint=STABLE, rgm=STABLE))
    assert [cell.outcome for cell in found.cells] == ["within seed noise", "different"]
    assert not found.reproduced


def test_holm_runs_over_the_cells_that_are_not_identical() -> None:
    shifted = [value + 0.25 for value in STABLE]
    p = welch(shifted, STABLE).p
    assert 0.025 < p < 0.05
    assert outcomes(table(a=shifted, b=STABLE), table(a=STABLE, b=STABLE)) == {
        "a": "different",
        "b": "identical",
    }
    assert set(outcomes(table(a=shifted, b=shifted), table(a=STABLE, b=STABLE)).values()) == {"within seed noise"}


def test_two_equal_constants_of_different_size_are_within_seed_noise_and_unequal_ones_differ() -> None:
    assert outcomes(table(joint=[100.0] * 4), table(joint=[100.0] * 5)) == {"joint": "within seed noise"}
    assert outcomes(table(joint=[99.0] * 5), table(joint=[100.0] * 5)) == {"joint": "different"}


def test_a_single_seed_that_changed_cannot_be_excused_by_noise() -> None:
    assert outcomes(table(joint=[97.1]), table(joint=STABLE)) == {"joint": "different"}


def test_missing_and_new_cells_are_named() -> None:
    found = compare_tables(table(joint=STABLE, rgm=[], gmp=LOWER), table(joint=STABLE, rgm=LOWER, gmp=[]))
    assert [place[0] for place in found.missing] == ["rgm"]
    assert [place[0] for place in found.new] == ["gmp"]
    assert not found.reproduced
    assert found.summary().endswith("0 different, 1 missing, 1 new.")


def test_a_new_cell_alone_does_not_spoil_the_reproduction() -> None:
    assert compare_tables(table(joint=STABLE, gmp=LOWER), table(joint=STABLE)).reproduced


def test_markdown_lists_what_changed_and_what_is_unmatched() -> None:
    text = compare_tables(
        table(joint=STABLE, pcgrad=LOWER[:3]), table(joint=STABLE, pcgrad=STABLE, rgm=LOWER)
    ).to_markdown()
    lines = text.splitlines()
    assert lines[0].startswith("# digits against the reference: 2 cells compared, 1 identical")
    (line,) = (line for line in lines if line.startswith("| pcgrad · digits · small · concat · accuracy"))
    parts = [part.strip() for part in line.split("|")]
    assert (parts[2], parts[3], parts[5]) == ("97.00 (n=5)", "90.00 (n=3)", "different")
    assert "- missing: rgm · digits · small · concat · accuracy" in lines
    assert not any("joint" in line for line in lines)


def test_a_table_written_to_a_file_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    file.write_text(json.dumps(table(joint=STABLE)))
    assert compare_tables(table(joint=STABLE), load_table(file)).reproduced


@pytest.mark.parametrize("content", ["", '{"schema": 1, "entr'])
def test_a_truncated_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "reference.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"reference\.json is no readable table"):
        load_table(file)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json is no readable table"):
        load_table(tmp_path / "absent.json")


@pytest.mark.parametrize("content", [{"schema": 2}, {}, []])
def test_a_table_of_another_schema_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "reference.json"
    file.write_text(json.dumps(content))
    with pytest.raises(SchemaError, match=r"has table schema (2|None), this version reads 1\. Update"):
        load_table(file)


@pytest.mark.parametrize("field", ["experiment", "selection"])
def test_tables_of_different_experiments_or_rules_are_not_compared(field: str) -> None:
    with pytest.raises(UsageError, match=f"The fresh table has {field} 'other'"):
        compare_tables(table(joint=STABLE) | {field: "other"}, table(joint=STABLE))


def test_another_recipe_is_named_with_both_values() -> None:
    fresh = {**table(joint=STABLE), "protocol": {"epochs": 1, "optimizer": {"lr": 0.01}}}
    found = compare_tables(fresh, table(joint=STABLE))
    assert found.recipe == ("epochs was 25 in the reference, is 1.",)
    assert "- Trained differently: epochs was 25 in the reference, is 1." in found.to_markdown()
    assert compare_tables(table(joint=STABLE), table(joint=STABLE)).recipe == ()
