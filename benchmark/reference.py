"""A fresh table against a committed one, cell by cell: identical, within seed noise, or different."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from benchmark.comparisons import ALPHA
from benchmark.errors import DataError, SchemaError, UsageError
from benchmark.statistics import Summary, holm, summarise, welch, zero_variance
from benchmark.tables import TABLE_SCHEMA

Outcome = Literal["identical", "within seed noise", "different"]
Place = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class CellMatch:
    """One number of both tables; `p_holm` is None where the values are identical or cannot be tested."""

    place: Place
    outcome: Outcome
    fresh: Summary
    reference: Summary
    p_holm: float | None


@dataclass(frozen=True)
class Match:
    """The comparison of two tables; `missing` has no fresh values, `new` has none in the reference.

    `recipe` says what the two were trained with where that differs: then different numbers are no surprise.
    """

    experiment: str
    cells: tuple[CellMatch, ...]
    missing: tuple[Place, ...]
    new: tuple[Place, ...]
    recipe: tuple[str, ...] = ()

    @property
    def reproduced(self) -> bool:
        """True when no number differs and none is missing."""
        return not self.missing and all(cell.outcome != "different" for cell in self.cells)

    def summary(self) -> str:
        """Return the verdict in one line."""
        counts = ", ".join(
            f"{sum(cell.outcome == outcome for cell in self.cells)} {outcome}"
            for outcome in ("identical", "within seed noise", "different")
        )
        extra = "".join(f", {len(places)} {word}" for word, places in self._unmatched() if places)
        return f"{self.experiment} against the reference: {len(self.cells)} cells compared, {counts}{extra}."

    def _unmatched(self) -> Sequence[tuple[str, tuple[Place, ...]]]:
        return ("missing", self.missing), ("new", self.new)

    def to_markdown(self) -> str:
        """Return the summary, every number that is not identical, and the unmatched ones."""
        changed = [cell for cell in self.cells if cell.outcome != "identical"]
        lines = [f"# {self.summary()}", ""]
        if changed:
            headers = ["cell", "reference", "fresh", "p (Holm)", "outcome"]
            rows = [
                [
                    _name(cell.place),
                    _mean(cell.reference),
                    _mean(cell.fresh),
                    "-" if cell.p_holm is None else f"{cell.p_holm:.3g}",
                    cell.outcome,
                ]
                for cell in changed
            ]
            lines += [tabulate(rows, headers, "pipe", disable_numparse=True), ""]
        lines += [f"- Trained differently: {difference}" for difference in self.recipe]
        for word, places in self._unmatched():
            lines += [f"- {word}: {_name(place)}" for place in places]
        lines.append(
            "- Identical: the same value for every seed, bit for bit. Within seed noise: Welch's two-sided "
            f"test, Holm over the cells that are not identical, p >= {ALPHA}; equal constants need no test."
        )
        return "\n".join([*lines, ""])


def _mean(found: Summary) -> str:
    return f"{found.mean:.2f} (n={found.n})"


def _name(place: Place) -> str:
    return " · ".join(place)


def load_table(file: Path) -> dict[str, Any]:
    """Read a table's JSON form; raises DataError for an unreadable file, SchemaError for another schema."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is no readable table ({error}). Restore it or render it again.") from None
    _check(table, str(file))
    found: dict[str, Any] = table
    return found


def _check(table: Any, what: str) -> None:
    schema = table.get("schema") if isinstance(table, Mapping) else None
    if schema != TABLE_SCHEMA:
        raise SchemaError(
            f"{what} has table schema {schema!r}, this version reads {TABLE_SCHEMA}. "
            "Update Equipoise or render the table again."
        )


def _values(table: Mapping[str, Any]) -> dict[Place, dict[int, float]]:
    """Return the values by seed of every number that has any."""
    fields = ("row", "dataset", "backbone", "fusion", "measure")
    found: dict[Place, dict[int, float]] = {}
    for entry in table["entries"]:
        row, dataset, backbone, fusion, measure = (str(entry[field]) for field in fields)
        if entry["values"]:
            values = dict(zip(entry["seeds"], entry["values"], strict=True))
            found[row, dataset, backbone, fusion, measure] = values
    return found


def compare_tables(fresh: Mapping[str, Any], reference: Mapping[str, Any]) -> Match:
    """Compare two tables in their JSON form.

    Raises SchemaError when either has another schema and UsageError when they are not the same table.
    """
    _check(fresh, "The fresh table")
    _check(reference, "The reference table")
    for field in ("experiment", "selection"):
        if fresh[field] != reference[field]:
            raise UsageError(
                f"The fresh table has {field} {fresh[field]!r}, the reference {reference[field]!r}. "
                "Compare tables of one experiment and selection rule."
            )
    ours, theirs = _values(fresh), _values(reference)
    places = [place for place in theirs if place in ours]
    changed = [place for place in places if ours[place] != theirs[place]]
    p_values = [welch(list(ours[place].values()), list(theirs[place].values())).p for place in changed]
    adjusted = dict(zip(changed, holm(p_values).tolist(), strict=True))
    return Match(
        experiment=str(fresh["experiment"]),
        cells=tuple(_match(place, ours[place], theirs[place], adjusted.get(place)) for place in places),
        missing=tuple(place for place in theirs if place not in ours),
        new=tuple(place for place in ours if place not in theirs),
        recipe=tuple(_recipe_differences(fresh, reference)),
    )


def _recipe_differences(fresh: Mapping[str, Any], reference: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields of protocol and seeds that differ, with both values."""
    ours, theirs = ({**table["protocol"], "seeds": table["seeds"]} for table in (fresh, reference))
    for field in sorted(ours.keys() | theirs.keys()):
        if ours.get(field) != theirs.get(field):
            yield f"{field} was {theirs.get(field)} in the reference, is {ours.get(field)}."


def _match(place: Place, fresh: dict[int, float], reference: dict[int, float], p_holm: float | None) -> CellMatch:
    ours, theirs = list(fresh.values()), list(reference.values())
    tested = p_holm is not None and math.isfinite(p_holm)
    if p_holm is None:
        outcome: Outcome = "identical"
    elif tested:
        outcome = "within seed noise" if p_holm >= ALPHA else "different"
    else:
        constant = zero_variance(ours) and zero_variance(theirs) and ours[0] == theirs[0]
        outcome = "within seed noise" if constant else "different"
    return CellMatch(place, outcome, summarise(ours), summarise(theirs), p_holm if tested else None)
