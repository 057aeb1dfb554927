"""The texts that `python -m benchmark.manual` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from benchmark import manual
from benchmark.errors import DataError
from benchmark.method import Method, MethodOptions, option, reading
from benchmark.protocol import Experiment, validated
from benchmark.rendering import render
from benchmark.tables import Table, build_table
from tests.benchmark.fake_cells import record

TITLE = "Fixture"


def table() -> Table:
    fields = {
        "name": "digits",
        "title": TITLE,
        "datasets": ["digits"],
        "backbones": ["small"],
        "protocol": {"epochs": 1},
        "baselines": {"joint": None},
        "proposed": {"rgm": None},
    }
    experiment = validated(Experiment, fields, "fixture")
    records = [
        {**record(cell), "schema": 1, "key": cell.describe(), "cell": cell.identity()} for cell in experiment.cells()
    ]
    return build_table(experiment, records)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    reference = tmp_path / manual.REFERENCE_TABLE
    reference.parent.mkdir(parents=True)
    reference.write_text(render(table(), "json"))
    (tmp_path / manual.README).write_text(f"before\n{manual.START}\nan old table\n{manual.END}\nafter\n")
    return tmp_path


def test_the_readme_shows_every_line_of_the_reference_table_but_its_title(root: Path) -> None:
    text = manual.generated(root)[root / manual.README]
    assert text.startswith(f"before\n{manual.START}\n\n| method")
    assert text.endswith(f"{manual.END}\nafter\n")
    assert set(render(table(), "md").splitlines()) - set(text.splitlines()) == {f"# {TITLE}"}
    assert "an old table" not in text


def test_a_changed_number_or_an_edited_block_is_outdated(root: Path) -> None:
    readme, reference = root / manual.README, root / manual.REFERENCE_TABLE
    readme.write_text(manual.generated(root)[readme])
    assert readme not in manual.outdated(root)
    original = readme.read_text()
    readme.write_text(original.replace("| joint", "| other"))
    assert manual.outdated(root)[readme] == original
    readme.write_text(original)
    content = json.loads(reference.read_text())
    content["entries"][0]["mean"] += 1
    reference.write_text(json.dumps(content))
    assert readme in manual.outdated(root)


def test_without_a_reference_table_the_block_is_empty(root: Path) -> None:
    (root / manual.REFERENCE_TABLE).unlink()
    text = manual.generated(root)[root / manual.README]
    assert text == f"before\n{manual.START}\n{manual.END}\nafter\n"


def test_a_readme_without_the_marks_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"lacks <!-- table: digits --> or <!-- end table -->\. Put both"):
        manual.with_table("no marks", "")


class Example(Method):
    class Options(MethodOptions):
        needed: str = option(..., "a name")
        share: float = option(1 / 3, "a | b", gt=0, le=1)
        parts: tuple[Literal["x", "y"], ...] = reading(("x", "y"), "why")
        weights: dict[str, float] | None = option(None, "by modality")


def test_the_table_of_options_says_kind_values_and_default() -> None:
    assert manual.options_table(Example).splitlines()[2:] == [
        "| `needed` | option | text | required | a name |",
        "| `share` | option | number, > 0, ≤ 1 | `0.3333` | a \\| b |",
        "| `parts` | reading | list of `x`, `y` | `[x, y]` | why |",
        "| `weights` | option | mapping of text to number or none | `null` | by modality |",
    ]


def test_the_page_has_the_authors_values_by_dataset() -> None:
    page = manual.methods_page()
    assert "- Official values: cremad: alpha=0.8, start=0.0, end=0.5; vggsound: alpha=0.1, start=0.0, end=0.5\n" in page
    assert "cremad: strength={audio: 0.95, video: 0.1}, threshold=0.04, memory=0.125" in page
    assert "Official values" not in manual.section("joint")


def test_the_page_has_a_section_for_every_method_with_its_paper_and_readings() -> None:
    page = manual.methods_page()
    assert "## rgm: RGM" in page
    assert "AAAI 2026" in page
    assert "| `orthogonalisation` | reading | `consistent`, `printed`, `exact` | `consistent` |" in page
