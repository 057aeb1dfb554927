"""Numbers printed in papers, what is known about how they were made, and the verdict on ours beside them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from benchmark.errors import DataError, UsageError
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Column, Experiment, Frozen, Row, validated
from benchmark.registry import DATASETS
from benchmark.statistics import summarise, t_interval

Field = str | int | float | None
Outcome = Literal["reproduced", "differs", "not comparable", "not run"]
PROTOCOLS = "protocols.yaml"


class Paper(Frozen):
    """What a paper says about its numbers (None: nothing); `backbones` and `metrics` map our words to its."""

    title: str
    backbones: dict[str, str]
    metrics: dict[str, tuple[str, ...]]
    tolerance: dict[str, float]
    protocol: dict[str, Field]
    datasets: dict[str, dict[str, Field]]


@dataclass(frozen=True)
class PublishedNumber:
    """One printed number: `backbone` and `metric` in the paper's words, everything else in ours."""

    table: str
    method: str
    variant: str
    dataset: str
    backbone: str
    fusion: str
    metric: str
    value: float


@dataclass(frozen=True)
class Verdict:
    """A published value beside ours: `inside` compares the numbers, whatever the protocols are."""

    value: float
    outcome: Outcome
    inside: bool
    differing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def reason(self) -> str:
        """The fields that prevent a comparison, in one line; empty where nothing does."""
        parts = [("differs", self.differing), ("unknown", self.unknown)]
        return "; ".join(f"{word}: {', '.join(fields)}" for word, fields in parts if fields)


@dataclass(frozen=True)
class Published:
    """The published table that stands beside an experiment's."""

    paper: Paper
    numbers: tuple[PublishedNumber, ...]

    def value(self, row: Row, column: Column, metric: str) -> float | None:
        """Return the printed number of a row, column and metric, or None.

        A variant that the paper does not have stands beside the paper's number of its method: a reading of
        ours.
        """
        dataset, backbone, fusion = column
        for variant in (row.variant, ""):
            for number in self.numbers:
                if (
                    (number.method, number.variant, number.dataset) == (row.method, variant, dataset)
                    and number.backbone == self.paper.backbones.get(backbone)
                    and number.metric in self.paper.metrics.get(metric, ())
                    and number.fusion in (fusion, "")
                ):
                    return number.value
        return None

    def verdict(
        self,
        experiment: Experiment,
        row: Row,
        column: Column,
        metric: str,
        values: Sequence[float],
        rule: str,
    ) -> Verdict | None:
        """Judge our values `(n,)`, if there are any, against the printed number; None where nothing is printed."""
        published = self.value(row, column, metric)
        if published is None:
            return None
        if not values:
            return Verdict(published, "not run", inside=False, differing=(), unknown=())
        ours = protocol_fields(experiment, row, column[0], rule, len(values))
        theirs = {**self.paper.protocol, **self.paper.datasets.get(column[0], {})}
        return judge(published, values, ours, theirs, self.paper.tolerance.get(metric, 0.0))


def protocol_fields(experiment: Experiment, row: Row, dataset: str, rule: str, seeds: int) -> dict[str, Field]:
    """Return a row's side of the comparison on one dataset, in the words of `protocols.yaml`."""
    protocol = experiment.protocol.changed(row.protocol)
    return {
        "optimizer": protocol.optimizer.name,
        "lr": protocol.optimizer.lr,
        "momentum": protocol.optimizer.momentum,
        "weight_decay": protocol.optimizer.weight_decay,
        "batch_size": protocol.batch_size,
        "epochs": protocol.epochs,
        "schedule": protocol.schedule.name,
        "seeds": seeds,
        "selection": rule,
        "split": protocol.split or DATASETS.load(dataset).card.default_split,
        "initialisation": experiment.weights.get(dataset, "scratch"),
    }


def _same(name: str, ours: Field, theirs: Field) -> bool:
    """Whether two known fields agree; more seeds than the paper only make our interval narrower."""
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return ours >= theirs if name == "seeds" else math.isclose(ours, theirs, rel_tol=1e-9)
    return ours == theirs


def judge(
    published: float,
    values: Sequence[float],
    ours: Mapping[str, Field],
    theirs: Mapping[str, Field],
    tolerance: float = 0.0,
) -> Verdict:
    """Return the verdict on values `(n,)` beside one printed number.

    `reproduced`: inside our 95 % t interval or within `tolerance` of our mean. `not comparable`: a field
    that the paper's protocol lists differs, or is unknown on either side.
    """
    unknown = tuple(name for name, value in theirs.items() if value is None or ours.get(name) is None)
    differing = tuple(
        f"{name} (ours {ours[name]}, published {value})"
        for name, value in theirs.items()
        if name not in unknown and not _same(name, ours[name], value)
    )
    inside = published in t_interval(values) or abs(summarise(values).mean - published) <= tolerance
    outcome: Outcome = "reproduced" if inside else "differs"
    return Verdict(published, "not comparable" if differing or unknown else outcome, inside, differing, unknown)


def load_published(paper: str, table: str, folder: Path | None = None) -> Published:
    """Read one table of a paper from `results/published`.

    Raises UsageError for a paper, a table or a field that is not there and DataError for an unreadable
    number.
    """
    folder = folder or SOURCE_ROOT / "results/published"
    protocols = yaml.safe_load((folder / PROTOCOLS).read_text(encoding="utf-8"))
    if paper not in protocols:
        raise UsageError(
            f"No published paper {paper!r} in {folder / PROTOCOLS}. Known: {', '.join(sorted(protocols))}."
        )
    numbers = _read_numbers(folder / f"{paper}.csv")
    chosen = tuple(number for number in numbers if number.table == table)
    if not chosen:
        tables = ", ".join(sorted({number.table for number in numbers}))
        raise UsageError(f"No {table!r} of paper {paper!r} in {folder / f'{paper}.csv'}. Known: {tables}.")
    return Published(validated(Paper, protocols[paper], f"{paper} in {folder / PROTOCOLS}"), chosen)


def _read_numbers(file: Path) -> list[PublishedNumber]:
    numbers = []
    with file.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            try:
                value = float(line.pop("value"))
                numbers.append(PublishedNumber(**line, value=value))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{file}: unreadable line {line!r} ({error}). Restore the file from version control."
                ) from None
    return numbers


def published_for(experiment: Experiment, folder: Path | None = None) -> Published | None:
    """Return the published table that an experiment names, or None where it names none."""
    named = experiment.published
    return load_published(named.paper, named.table, folder) if named else None
