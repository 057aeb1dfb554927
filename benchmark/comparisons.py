"""Families of comparisons between table rows: Welch's test, Holm inside the family, Hedges' g beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.protocol import Column
from benchmark.statistics import (
    hedges_g,
    holm,
    mean_ranks,
    pooled_sd,
    smallest_detectable_difference,
    summarise,
    welch,
)

ALPHA = 0.05

Family = Literal["reference", "proposed", "best"]
Outcome = Literal["better", "worse", "open", "untested"]


@dataclass(frozen=True)
class Sample:
    """One row's values `(n,)` in one column; `usable` is false where a seed is missing or failed."""

    row: str
    values: tuple[float, ...]
    usable: bool

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return summarise(self.values).mean


@dataclass(frozen=True)
class Comparison:
    """A row against another one of its column: `difference` is row minus other, `open` is not significant.

    `untested`: a seed is missing on one side, or both sides are constant; the comparison still counts in
    its family.
    """

    family: Family
    row: str
    against: str
    difference: float | None
    p: float | None
    p_holm: float | None
    hedges_g: float | None
    outcome: Outcome


@dataclass(frozen=True)
class Detectable:
    """Smallest difference found with power 0.8 by one comparison, and at Holm's first step in a family."""

    column: Column
    sd: float
    single: float
    family: float


@dataclass(frozen=True)
class Rank:
    """A row's mean rank over the column groups (1 is best) with its 95 % bootstrap bounds."""

    row: str
    mean: float
    low: float
    high: float


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def compare(family: Family, pairs: Sequence[tuple[Sample, Sample]], lower: bool = False) -> list[Comparison]:
    """Test every pair (row, other) of one family, with Holm's adjustment over all of them; `lower` is better or not."""
    usable = [row.usable and other.usable for row, other in pairs]
    p_values = [
        welch(row.values, other.values).p if ready else math.nan
        for (row, other), ready in zip(pairs, usable, strict=True)
    ]
    found = []
    for (row, other), ready, p, p_holm in zip(pairs, usable, p_values, holm(p_values), strict=True):
        difference = row.mean - other.mean if ready else math.nan
        found.append(
            Comparison(
                family=family,
                row=row.row,
                against=other.row,
                difference=_number(difference),
                p=_number(p),
                p_holm=_number(p_holm),
                hedges_g=_number(hedges_g(row.values, other.values)) if ready else None,
                outcome=_outcome(difference, p_holm, lower),
            )
        )
    return found


def _outcome(difference: float, p_holm: float, lower: bool) -> Outcome:
    if math.isnan(p_holm):
        return "untested"
    if p_holm >= ALPHA:
        return "open"
    return "better" if (difference < 0) == lower else "worse"


def families(
    samples: Sequence[Sample], reference: str, proposed: Sequence[str], lower: bool = False
) -> list[Comparison]:
    """Return one column's comparisons: both declared families, and every row against the best usable mean.

    The third family is chosen after looking; it only serves to say what cannot be told apart from the best.
    """
    by_row = {sample.row: sample for sample in samples}
    baselines = [sample for sample in samples if sample.row not in proposed]
    found = compare("reference", [(s, by_row[reference]) for s in samples if s.row != reference], lower)
    found += compare("proposed", [(s, by_row[name]) for name in proposed for s in baselines], lower)
    usable = [sample for sample in samples if sample.usable]
    if usable:
        best = (min if lower else max)(usable, key=lambda sample: sample.mean)
        found += compare("best", [(s, best) for s in usable if s is not best], lower)
    return found


def detectable(column: Column, samples: Sequence[Sample], seeds: int, largest: int) -> Detectable | None:
    """Return what `seeds` values per arm find at the pooled SD of the usable rows; None without one."""
    spreads = [summarise(sample.values).sd for sample in samples if sample.usable and seeds > 1]
    if not spreads:
        return None
    sd = pooled_sd(spreads)
    single, family = (smallest_detectable_difference(sd, seeds, alpha) for alpha in (ALPHA, ALPHA / max(largest, 1)))
    return Detectable(column, sd, single, family)


def ranks(columns: Sequence[Sequence[Sample]], lower: bool = False) -> tuple[Rank, ...]:
    """Rank the rows usable in every column group; fewer than two rows or column groups have no ranks."""
    ready = [samples for samples in zip(*columns, strict=True) if all(sample.usable for sample in samples)]
    if len(columns) < 2 or len(ready) < 2:
        return ()
    sign = -1 if lower else 1
    found = mean_ranks([[[sign * value for value in sample.values] for sample in samples] for samples in ready])
    return tuple(
        Rank(samples[0].row, float(mean), float(low), float(high))
        for samples, mean, low, high in zip(ready, found.mean, found.low, found.high, strict=True)
    )
