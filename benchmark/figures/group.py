"""What every figure starts from: an experiment's finished seeds, column group by column group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmark.errors import UsageError
from benchmark.footer import short_names
from benchmark.protocol import Column, Experiment, Row, Selection
from benchmark.scores import Grid, Origin, Record, reading
from benchmark.tables import LABELLED_ONLY


class NothingToDraw(UsageError):  # noqa: N818 - a finding about the experiment, which `all` passes over
    """The experiment is not one that this kind of figure is about, or records nothing for it."""


@dataclass(frozen=True)
class Finished:
    """A row with its finished seeds: the records of each, one per target domain."""

    row: Row
    seeds: Mapping[int, Sequence[Record]]

    def records(self) -> list[Record]:
        """Return the records of all seeds."""
        return [record for records in self.seeds.values() for record in records]

    def epochs(self) -> int:
        """Return the number of epochs, which all seeds share."""
        [record, *_] = self.records()
        with reading(record, "epochs"):
            return len(record["epochs"])

    def per_seed(self, number: Callable[[Record], float]) -> list[float]:
        """Return one number per seed, the mean over its target domains."""
        return [math.fsum(map(number, records)) / len(records) for records in self.seeds.values()]


@dataclass(frozen=True)
class Group:
    """One column group: rows with finished seeds, labels of those without any, and the rule that selects the epoch.

    `name` holds what tells it from the experiment's other groups; empty for a single one.
    """

    experiment: Experiment
    column: Column
    name: str
    selection: Selection
    rows: tuple[Finished, ...]
    left_out: tuple[str, ...]
    origin: Origin

    def modalities(self) -> tuple[str, ...]:
        """Return the modalities in the order of the dataset."""
        return modalities(self.rows[0].records()[0])

    def notes(self, *reading: str) -> tuple[str, ...]:
        """Return the notes below a figure: what it is of, how to read it, what is missing from it."""
        partial = [
            f"{finished.row.label} ({len(finished.seeds)})"
            for finished in self.rows
            if len(finished.seeds) < self.experiment.seeds
        ]
        return (
            f"{self.experiment.title}: {' · '.join(self.column)}.",
            *reading,
            *sentence("No finished cell, left out", self.left_out),
            *sentence(f"Fewer than {self.experiment.seeds} seeds finished", partial),
        )


def modalities(record: Record) -> tuple[str, ...]:
    """Return a record's modalities; raises DataError for a record without them."""
    with reading(record, "modalities"):
        return tuple(record["modalities"])


def sentence(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the note "what: names.", or none without names."""
    return (f"{what}: {', '.join(names)}.",) if names else ()


def groups(experiment: Experiment, records: Iterable[Record]) -> list[Group]:
    """Return the column groups that have a finished cell.

    The rule that looks at the test part selects no epoch of a figure: as in the tables, `best_val` takes its place.
    Raises UsageError when no cell is finished.
    """
    grid = Grid(experiment, records)
    columns = experiment.columns()
    names = short_names(columns)
    found = []
    for column in columns:
        rows = [Finished(row, grid.finished(row, column)) for row in experiment.rows()]
        group = Group(
            experiment=experiment,
            column=column,
            name=names[column],
            selection="best_val" if experiment.selection == LABELLED_ONLY else experiment.selection,
            rows=tuple(row for row in rows if row.seeds),
            left_out=tuple(row.row.label for row in rows if not row.seeds),
            origin=grid.origin(),
        )
        if group.rows:
            found.append(group)
    if not found:
        raise UsageError(
            f"Experiment {experiment.name!r} has no finished cell to draw. "
            f"Train its cells first: `equipoise grid {experiment.name}`."
        )
    return found
