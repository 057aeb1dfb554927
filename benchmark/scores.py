"""From result records to one value per seed: which epoch counts, which runs belong to a table entry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from benchmark.errors import DataError, SchemaError
from benchmark.metrics import parts_of
from benchmark.protocol import Cell, Column, Experiment, Row, Selection, canonical
from benchmark.version import RESULT_SCHEMA

Record = Mapping[str, Any]


def select_epoch(history: Sequence[Record], rule: Selection) -> Record:
    """Return the epoch that counts: best val accuracy, last, or best test accuracy (ties: the earliest)."""
    if rule == "last":
        return history[-1]
    part = "val" if rule == "best_val" else "test"
    return max(history, key=lambda epoch: epoch[part]["accuracy"])


@contextmanager
def reading(record: Record, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while `what` is read from a record into a DataError that names the record."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"Result {record.get('key')} has no usable {what} "
            f"({type(error).__name__}: {error}). Remove it and run the cell again."
        ) from None


_RELIABILITY = ("ece", "auroc", "aurc", "fpr95")


def _final(record: Record, rule: Selection) -> Record:
    """Return the evaluation at the end; no weights are kept of an epoch selected on test, best_val's stand for it."""
    found: Record = record["final"]["last" if rule == "last" else "best_val"]
    return found


def score(record: Record, metric: str, rule: Selection) -> float:
    """Return a run's metric at the selected epoch in %, or its balance factor (-1 to 1) at the end.

    NaN where the number is undefined for this run. Raises DataError for a record without the number.
    """
    with reading(record, f"{metric} under the rule {rule}"):
        if metric == "balance_factor":
            return float(record["balance_factor"])
        if metric in _RELIABILITY:
            found = _final(record, rule)[metric]
            return math.nan if found is None else 100 * float(found)
        if metric == "corrupted":
            by_modality = _final(record, rule)["corrupted"].values()
            return 100 * fmean(a for kinds in by_modality for severities in kinds.values() for a in severities)
        name, modality = parts_of(metric)
        selected = select_epoch(record["epochs"], rule)
        found = selected["val" if name == "val_accuracy" else "test"]
        if metric == "missing":
            return 100 * fmean(found["missing"].values()) if found["missing"] else math.nan
        if modality is not None:
            return 100 * float(found["unimodal"].get(modality, math.nan))
        return 100 * float(found["accuracy" if name == "val_accuracy" else name])


def _indexed(records: Iterable[Record]) -> dict[str, Record]:
    """Return the records by the canonical text of their cell."""
    found: dict[str, Record] = {}
    for record in records:
        if record.get("schema") not in range(1, RESULT_SCHEMA + 1):
            raise SchemaError(
                f"Result {record.get('key')} has schema {record.get('schema')!r}, "
                f"this version reads up to {RESULT_SCHEMA}. Update Equipoise or run the cell again."
            )
        if not isinstance(record.get("cell"), Mapping):
            raise DataError(f"Result {record.get('key')} does not name its cell. Remove it and run the cell again.")
        identity = canonical(record["cell"])
        # Two rows of one configuration share their cells, so the same record may come twice.
        if identity in found and found[identity].get("key") != record.get("key"):
            raise DataError(
                f"Two results, {found[identity].get('key')} and {record.get('key')}, "
                f"for one cell: {identity}. Pass only the current one."
            )
        found[identity] = record
    return found


@dataclass(frozen=True)
class Origin:
    """Every commit, version and device behind a table's numbers, each once."""

    commits: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """What `cells` finished cells of a dataset were trained on.

    Samples by part of the split, and where it is known how they came to be so many; `digest` is that of the content.
    """

    dataset: str
    split: str
    samples: dict[str, int]
    census: dict[str, dict[str, int]]
    digest: str
    cells: int


class Grid:
    """An experiment's cells beside the records that exist for them."""

    def __init__(self, experiment: Experiment, records: Iterable[Record]) -> None:
        self._records = _indexed(records)
        self._cells: dict[tuple[str, Column], dict[int, list[Cell]]] = {}
        for column in experiment.columns():
            for row in experiment.rows():
                for cell in experiment.cells_of(row, column):
                    self._cells.setdefault((row.label, column), {}).setdefault(cell.seed, []).append(cell)

    def _record(self, cell: Cell) -> Record | None:
        return self._records.get(canonical(cell.identity()))

    def finished(self, row: Row, column: Column, target: str | None = None) -> dict[int, list[Record]]:
        """Return the records of every finished seed: one per target domain once all are there, or one target's."""
        finished = {}
        for seed, every in self._cells[row.label, column].items():
            cells = [cell for cell in every if target in (None, cell.target)]
            records = [record for cell in cells if (record := self._record(cell)) is not None]
            if records and len(records) == len(cells):
                finished[seed] = records
        return finished

    def values(
        self, row: Row, column: Column, metric: str, rule: Selection, target: str | None = None
    ) -> dict[int, float]:
        """Return one value per finished seed, the mean over its target domains or one of them; none where undefined."""
        means = {
            seed: math.fsum(score(record, metric, rule) for record in records) / len(records)
            for seed, records in self.finished(row, column, target).items()
        }
        return {seed: mean for seed, mean in means.items() if not math.isnan(mean)}

    def missing(self, row: Row, column: Column) -> list[Cell]:
        """Return the cells of a table entry that have no record."""
        return [
            cell for cells in self._cells[row.label, column].values() for cell in cells if self._record(cell) is None
        ]

    def origin(self) -> Origin:
        """Return where the experiment's finished cells come from."""
        cells = (cell for seeds in self._cells.values() for group in seeds.values() for cell in group)
        sources = [record.get("provenance", {}) for cell in cells if (record := self._record(cell)) is not None]
        names = _distinct(name for source in sources for name in source.get("versions", {}))
        return Origin(
            commits=_distinct(_commit(source) for source in sources),
            versions={
                name: _distinct(s["versions"][name] for s in sources if name in s.get("versions", {})) for name in names
            },
            devices=_distinct(str(source["device"]) for source in sources if source.get("device")),
        )

    def data(self) -> tuple[Data, ...]:
        """Return what each dataset was when the experiment's cells were trained on it, as far as they say so.

        One that was prepared anew with other content is there several times, the one with most cells first.
        """
        cells = (cell for seeds in self._cells.values() for group in seeds.values() for cell in group)
        found: dict[str, list[Data]] = {}
        # Rows of one configuration share their cells.
        for identity, cell in {canonical(cell.identity()): cell for cell in cells}.items():
            record = self._records.get(identity, {})
            with reading(record, "account of its data"):
                told = record.get("provenance", {}).get("data")
                if told is not None:
                    found.setdefault(canonical([cell.dataset, told]), []).append(Data(cell.dataset, **told, cells=0))
        counted = [replace(same[0], cells=len(same)) for same in found.values()]
        return tuple(sorted(counted, key=lambda data: (data.dataset, -data.cells, data.digest)))


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def _commit(source: Record) -> str:
    commit = source.get("commit") or "unknown"
    return f"{commit} (with uncommitted changes)" if source.get("dirty") else commit
