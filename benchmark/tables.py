"""An experiment and its result records become one table: means, marks, families, verdicts, provenance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from benchmark.comparisons import Comparison, Detectable, Rank, Sample, detectable, families, ranks
from benchmark.metrics import LOWER_IS_BETTER, label
from benchmark.protocol import Column, Experiment, Row, Selection, canonical, place_name
from benchmark.published import Published, Verdict
from benchmark.scores import Data, Grid, Origin, Record
from benchmark.statistics import summarise, t_interval, zero_variance

TABLE_SCHEMA = 1
LABELLED_ONLY = "best_test"


@dataclass(frozen=True)
class Measure:
    """One kind of number in the table, the mean over target domains or of one `target`.

    A `labelled` one is shown beside it and takes no part in any mark.
    """

    name: str
    metric: str
    selection: Selection
    label: str
    labelled: bool = False
    target: str | None = None

    @property
    def lower(self) -> bool:
        """Whether a lower number is better."""
        return self.metric in LOWER_IS_BETTER


@dataclass(frozen=True)
class TableRow:
    """One row; `tag` (P1, P2, ...) names a proposed method in the marks of the other rows."""

    label: str
    method: str
    variant: str
    options: dict[str, Any]
    proposed: bool
    tag: str


@dataclass(frozen=True)
class Entry:
    """One number of the table: the values of its seeds (in % for accuracies) and what follows from them."""

    row: str
    dataset: str
    backbone: str
    fusion: str
    measure: str
    expected: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    best: bool = False
    second: bool = False
    indistinguishable: bool = False
    comparisons: tuple[Comparison, ...] = ()
    published: Verdict | None = None

    @property
    def column(self) -> Column:
        """The column group (dataset, backbone, fusion)."""
        return self.dataset, self.backbone, self.fusion

    @property
    def complete(self) -> bool:
        """Whether every seed has the number; anything less takes part in no comparison and gets no mark."""
        return len(self.values) == self.expected > 0


@dataclass(frozen=True)
class Missing:
    """Seeds of an entry without a result; `reason` is the failure's message, None if not run."""

    row: str
    column: Column
    seeds: tuple[int, ...]
    reason: str | None


@dataclass(frozen=True)
class Tuned:
    """How the rows were tuned: budget, search space, and what was chosen by place and row (None: not yet)."""

    trials: int
    seeds: int
    search: dict[str, Any]
    chosen: dict[str, dict[str, dict[str, Any] | None]]


@dataclass(frozen=True)
class Table:
    """Everything a rendering needs, in plain values."""

    schema: int
    experiment: str
    title: str
    selection: Selection
    seeds: int
    reference: str
    families: dict[str, int]
    protocol: dict[str, Any]
    rows: tuple[TableRow, ...]
    columns: tuple[Column, ...]
    measures: tuple[Measure, ...]
    entries: tuple[Entry, ...]
    ranks: tuple[Rank, ...]
    detectable: tuple[Detectable, ...]
    missing: tuple[Missing, ...]
    zero_variance: tuple[str, ...]
    published: str | None
    origin: Origin
    tuning: Tuned | None = None
    notes: tuple[str, ...] = ()
    data: tuple[Data, ...] = ()

    def entry(self, row: str, column: Column, measure: str) -> Entry:
        """Return one entry by row label, column group and measure."""
        wanted = (row, column, measure)
        return next(entry for entry in self.entries if (entry.row, entry.column, entry.measure) == wanted)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`, without `data` where no cell says what it was trained on."""
        return {name: value for name, value in asdict(self).items() if name != "data" or value}


def _measures(experiment: Experiment, selection: Selection) -> tuple[Measure, ...]:
    """Return the measures; the rule that looks at the test part only ever adds a labelled column."""
    rule: Selection = "best_val" if selection == LABELLED_ONLY else selection
    targets = list(
        dict.fromkeys(target for name in experiment.datasets for target in experiment.targets_of(name) if target)
    )
    mean = ", mean over targets" if targets else ""
    found = [Measure(metric, metric, rule, f"{label(metric)}{mean}") for metric in experiment.metrics]
    first = experiment.metrics[0]
    found += [Measure(f"{first} on {t}", first, rule, f"{label(first)}, target {t}", target=t) for t in targets]
    if selection == LABELLED_ONLY:
        optimistic = f"{label('accuracy')}, epoch selected on test"
        found.append(Measure("accuracy_best_test", "accuracy", "best_test", optimistic, labelled=True))
    return tuple(found)


def _rows(experiment: Experiment) -> list[TableRow]:
    rows: list[TableRow] = []
    for row in experiment.rows():
        tag = f"P{1 + sum(other.proposed for other in rows)}" if row.proposed else ""
        rows.append(TableRow(row.label, row.method, row.variant, row.settings, row.proposed, tag))
    return rows


def _entry(experiment: Experiment, grid: Grid, row: Row, column: Column, measure: Measure) -> Entry:
    values = grid.values(row, column, measure.metric, measure.selection, measure.target)
    applies = measure.target is None or measure.target in experiment.targets_of(column[0])
    numbers = tuple(values.values())
    found = summarise(numbers) if numbers else None
    interval = t_interval(numbers) if len(numbers) > 1 else None
    return Entry(
        row=row.label,
        dataset=column[0],
        backbone=column[1],
        fusion=column[2],
        measure=measure.name,
        expected=experiment.seeds if applies else 0,
        seeds=tuple(values),
        values=numbers,
        mean=found.mean if found else None,
        sd=found.sd if found and interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
    )


def _placed(entries: Sequence[Entry], lower: bool) -> list[Entry]:
    """Mark the best and the second best mean of one column and measure; equal means share the mark."""
    means = sorted({entry.mean for entry in entries if entry.complete and entry.mean is not None}, reverse=not lower)
    return [
        replace(
            entry,
            best=entry.complete and entry.mean in means[:1],
            second=entry.complete and entry.mean in means[1:2],
        )
        for entry in entries
    ]


def _samples(entries: Sequence[Entry]) -> list[Sample]:
    return [Sample(entry.row, entry.values, entry.complete) for entry in entries]


def _compared(entries: Sequence[Entry], reference: str, proposed: Sequence[str], lower: bool) -> list[Entry]:
    """Attach the comparisons of one column to its entries."""
    found = families(_samples(entries), reference, proposed, lower)
    compared = []
    for entry in entries:
        own = tuple(comparison for comparison in found if comparison.row == entry.row)
        tied = any(c.family == "best" and c.outcome == "open" for c in own)
        compared.append(replace(entry, comparisons=own, indistinguishable=tied))
    return compared


def _missing(
    experiment: Experiment, grid: Grid, failures: Iterable[Record], absent: Mapping[str, str]
) -> Iterator[Missing]:
    reasons = {canonical(failure["cell"]): str(failure["error"]) for failure in failures}
    for column in experiment.columns():
        for row in experiment.rows():
            seeds: dict[str | None, list[int]] = {}
            for cell in grid.missing(row, column):
                reason = reasons.get(canonical(cell.identity()), absent.get(cell.dataset))
                seeds.setdefault(reason, []).append(cell.seed)
            for reason, found in seeds.items():
                yield Missing(row.label, column, tuple(dict.fromkeys(found)), reason)


def _tuned(experiment: Experiment) -> Tuned | None:
    tuning = experiment.tuning
    if tuning is None:
        return None
    chosen: dict[str, dict[str, dict[str, Any] | None]] = {}
    places = [
        place_name(column, target) for column in experiment.columns() for target in experiment.targets_of(column[0])
    ]
    for place in places:
        by_row = experiment.tuned.get(place, {})
        chosen[place] = {
            row.label: {**by_row[row.label].protocol, **by_row[row.label].options} if row.label in by_row else None
            for row in experiment.rows()
        }
    # A search space may be shared with other experiments: what no row of this one may vary is not part of its table.
    parts = {part for row in experiment.rows() for part in row.parts}
    search = tuning.search.model_dump(mode="json")
    search["methods"] = {name: found for name, found in search["methods"].items() if name in parts}
    return Tuned(tuning.trials, tuning.seeds, search, chosen)


def build_table(
    experiment: Experiment,
    records: Iterable[Record],
    selection: Selection | None = None,
    published: Published | None = None,
    failures: Iterable[Record] = (),
    absent: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    """Build the table of an experiment from the result records of its current cells.

    `selection` overrides the experiment's rule; `failures` are error records with `cell` and `error`; `absent` says by
    dataset why cells that have not failed are missing.
    Records of other cells are ignored. Raises SchemaError for a record of another schema and DataError for a
    duplicate or an unreadable one.
    """
    grid = Grid(experiment, records)
    rows, columns = _rows(experiment), tuple(experiment.columns())
    measures = _measures(experiment, selection or experiment.selection)
    reference = next(row.label for row in rows if row.method == experiment.reference and not row.proposed)
    proposed = [row.label for row in rows if row.proposed]
    sizes = {"reference": len(rows) - 1, "proposed": len(proposed) * (len(rows) - len(proposed))}

    entries: list[Entry] = []
    for column in columns:
        for measure in measures:
            found = [_entry(experiment, grid, row, column, measure) for row in experiment.rows()]
            if not measure.labelled:
                found = _placed(found, measure.lower)
            if measure is measures[0]:
                found = _compared(found, reference, proposed, measure.lower)
            if published is not None and measure.target is None:
                found = [
                    replace(
                        e,
                        published=published.verdict(
                            experiment, row, column, measure.metric, e.values, measure.selection
                        ),
                    )
                    for e, row in zip(found, experiment.rows(), strict=True)
                ]
            entries.extend(found)

    primary = [[e for e in entries if (e.column, e.measure) == (column, measures[0].name)] for column in columns]
    limits = [
        detectable(column, _samples(found), experiment.seeds, max(sizes.values()))
        for column, found in zip(columns, primary, strict=True)
    ]
    return Table(
        schema=TABLE_SCHEMA,
        experiment=experiment.name,
        title=experiment.title,
        selection=selection or experiment.selection,
        seeds=experiment.seeds,
        reference=reference,
        families=sizes,
        protocol=experiment.protocol.model_dump(mode="json"),
        rows=tuple(rows),
        columns=columns,
        measures=measures,
        entries=tuple(entries),
        ranks=ranks([_samples(found) for found in primary], measures[0].lower),
        detectable=tuple(limit for limit in limits if limit is not None),
        missing=tuple(_missing(experiment, grid, failures, absent)),
        zero_variance=tuple(
            f"{entry.row} on {'/'.join(entry.column)}"
            for found in primary
            for entry in found
            if entry.values and zero_variance(entry.values)
        ),
        published=published.paper.title if published else None,
        tuning=_tuned(experiment),
        notes=experiment.notes,
        origin=grid.origin(),
        data=grid.data(),
    )
