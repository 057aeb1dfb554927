"""The findings: every number stands in the table that its paragraph names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmark.paths import SOURCE_ROOT

PAGE = SOURCE_ROOT / "docs/findings.md"
# What a table prints: a mean with its SD, or a number with two digits after the point.
NUMBER = re.compile(r"-?\d+\.\d\d ± \d+\.\d\d|-?\d+\.\d\d(?!\d)")
TABLE = re.compile(r"\]\(\.\./(results/(?:tables|published)/[\w.]+)\)")
KNOWN = {"0.85"}
"""Numbers of the mathematics, which no table holds."""


def paragraphs() -> list[str]:
    text = PAGE.read_text(encoding="utf-8").partition("\n## ")[2]
    return [" ".join(part.split()) for part in re.split(r"\n\n|\n- ", text) if not part.lstrip().startswith("#")]


@pytest.mark.parametrize("paragraph", paragraphs(), ids=lambda text: text[:40])
def test_a_finding_names_its_table_and_its_numbers_stand_there(paragraph: str) -> None:
    if NUMBER.search(paragraph) is None and TABLE.search(paragraph) is None:
        assert len(paragraph.split()) < 12, f"no table behind: {paragraph}"
        return
    tables = [Path(SOURCE_ROOT / name) for name in TABLE.findall(paragraph)]
    assert tables, f"no table behind: {paragraph}"
    content = " ".join(table.read_text(encoding="utf-8") for table in tables)
    missing = [number for number in NUMBER.findall(paragraph) if number not in content and number not in KNOWN]
    assert not missing


def test_there_are_findings() -> None:
    assert sum(NUMBER.search(paragraph) is not None for paragraph in paragraphs()) > 5
