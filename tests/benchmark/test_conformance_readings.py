"""Every value of every reading trains, with the passes it declares; exceptions are named with their reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from benchmark.conformance import CHECKS
from benchmark.conformance_trial import Outcome, Trial
from benchmark.errors import CellError
from benchmark.registry import METHODS

DIVERGING = {("arm", "variant", "released")}
"""Readings whose loss does not stay finite on the check task: ARM's released ratios are unbounded, of either sign."""
CONTINUOUS = {("pmr", "entropy")}
"""Readings that are numbers, whose default is what conformance trains."""


def values(annotation: Any) -> list[Any]:
    """Return what an option of this type may be: literals, both booleans, or tuples of one literal."""
    if annotation is bool:
        return [False, True]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) is tuple:
        return [(value,) for value in values(get_args(annotation)[0])]
    return [value for member in get_args(annotation) for value in values(member)]


def readings() -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield the method, name and field of every registered reading."""
    for method in METHODS.names():
        for name, field in METHODS.load(method).Options.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra["reading"]:
                yield method, name, field


CASES = [
    (method, name, value)
    for method, name, field in readings()
    for value in values(field.annotation)
    if value != field.default
]
"""The defaults are what every other conformance test trains."""


@pytest.mark.parametrize("check", ["finite", "passes"])
@pytest.mark.parametrize(("method", "name", "value"), [case for case in CASES if case not in DIVERGING])
def test_every_other_value_of_a_reading_trains_with_the_passes_it_declares(
    method: str, name: str, value: Any, check: str
) -> None:
    finding = CHECKS[check](Trial(METHODS.load(method), {name: value}))
    assert finding.outcome is Outcome.PASSED, finding.reason


@pytest.mark.parametrize(("method", "name", "value"), sorted(DIVERGING))
def test_a_diverging_reading_ends_the_cell_with_its_reason(method: str, name: str, value: Any) -> None:
    with pytest.raises(CellError, match="Training loss became"):
        Trial(METHODS.load(method), {name: value}).fit()


def test_only_the_named_readings_are_numbers() -> None:
    assert {(method, name) for method, name, field in readings() if not values(field.annotation)} == CONTINUOUS


def test_diverging_readings_are_registered() -> None:
    assert set(CASES) >= DIVERGING
