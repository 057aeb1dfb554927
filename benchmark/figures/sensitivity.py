"""`sensitivity`: accuracy against the value of an option, everything else being equal (GMP, Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from benchmark.figures.energy import DECADES
from benchmark.figures.group import Finished, Group, NothingToDraw, sentence
from benchmark.figures.sheet import BASELINE, GREY, PROPOSED, Frame, look, panels
from benchmark.protocol import OF_PROTOCOL, Selection, canonical, leaves
from benchmark.scores import reading, score
from benchmark.statistics import summarise, t_interval

_DEFAULT, _CHANGED = "unchanged", "one option changed"


@dataclass(frozen=True)
class Accuracy:
    """Accuracies (%) of a row's seeds, means over targets; `half` of their 95 % t interval (None: one seed)."""

    row: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    half: float | None


@dataclass(frozen=True)
class Panel:
    """One option of a method: accuracy by its value, ascending; `default` is the value of the row `reference`."""

    method: str
    proposed: bool
    option: str
    reference: str
    default: float
    points: tuple[tuple[float, Accuracy], ...]


@dataclass(frozen=True)
class Sensitivity:
    """What the figure shows; `baseline` is the experiment's reference, where that is another method."""

    baseline: Accuracy | None
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the options in which two rows differ."""
    return [
        name
        for name in {**one, **other}
        if name not in one or name not in other or canonical(one[name]) != canonical(other[name])
    ]


def _numeric(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def changed_option(reference: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Return the one option, numeric, in which a row differs from a reference; None where it is not so."""
    names = differing(reference, options)
    if len(names) == 1 and _numeric(reference.get(names[0]), options.get(names[0])):
        return names[0]
    return None


def _options(finished: Finished) -> dict[str, Any]:
    """Return the options and protocol fields that all of a row's runs share; tuning may have given targets others."""
    records = finished.records()
    every = []
    for record in records:
        with reading(record, "options and protocol"):
            fields = leaves(record["protocol"], OF_PROTOCOL)
            every.append({**record["options"], **dict(fields)})
    first, *others = every
    varied = {name for other in others for name in differing(first, other)}
    return {name: value for name, value in first.items() if name not in varied}


def _accuracy(finished: Finished, rule: Selection) -> Accuracy:
    values = finished.per_seed(lambda record: score(record, "accuracy", rule))
    mean, end = summarise(values).mean, t_interval(values).high
    half = None if math.isnan(end) else end - mean
    return Accuracy(finished.row.label, tuple(finished.seeds), tuple(values), mean, half)


def _panels(rows: Sequence[Finished], rule: Selection) -> Iterator[Panel]:
    """Yield a panel per option of one method's rows.

    Their reference is the row that most others differ from in one numeric option alone, on a tie the one that sets the
    fewest options itself, then the first.
    """
    options = [_options(finished) for finished in rows]
    changes = [[changed_option(reference, other) for other in options] for reference in options]

    def rank(place: int) -> tuple[int, int]:
        return -sum(name is not None for name in changes[place]), len(rows[place].row.options)

    place = min(range(len(rows)), key=rank)
    reference = rows[place]
    for name in dict.fromkeys(filter(None, changes[place])):
        members = [place, *(other for other, changed in enumerate(changes[place]) if changed == name)]
        points = sorted(
            ((float(options[member][name]), _accuracy(rows[member], rule)) for member in members),
            key=lambda point: point[0],
        )
        row = reference.row
        yield Panel(row.method, row.proposed, name, row.label, float(options[place][name]), tuple(points))


def sensitivity(group: Group) -> Sensitivity:
    """Return the panels that the rows give.

    Raises NothingToDraw without two rows of a method that differ in one numeric option alone, DataError for a record
    without its options.
    """
    methods: dict[str, list[Finished]] = {}
    for finished in group.rows:
        methods.setdefault(finished.row.method, []).append(finished)
    rule, experiment = group.selection, group.experiment
    found = tuple(panel for rows in methods.values() for panel in _panels(rows, rule))
    if not found:
        raise NothingToDraw(
            f"Experiment {experiment.name!r} has no two finished rows of one method that differ in one numeric option "
            "alone. Add variants of a method that change one option each, and train them."
        )
    references = methods.get(experiment.reference, [])
    swept = {panel.method for panel in found}
    baseline = _accuracy(references[0], rule) if references and experiment.reference not in swept else None
    shown = [item for panel in found for _, item in panel.points] + ([baseline] if baseline else [])
    single = list(dict.fromkeys(item.row for item in shown if item.half is None))
    return Sensitivity(
        baseline,
        found,
        (
            *group.notes(f"Mean over targets and seeds, 95 % t interval over seeds; epoch selected by {rule}."),
            *sentence("One seed, no interval", single),
        ),
    )


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) >= 10**DECADES * min(values)


def _limits(data: Sensitivity) -> tuple[float, float]:
    """Return the ends of the axis that all panels share."""
    items = [item for panel in data.panels for _, item in panel.points] + ([data.baseline] if data.baseline else [])
    low = min(item.mean - (item.half or 0.0) for item in items)
    high = max(item.mean + (item.half or 0.0) for item in items)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


@look()
def draw(data: Sensitivity) -> Figure:
    """Draw one panel per option; the value of the row that the others differ from is a diamond on a dotted line."""
    key = {
        _CHANGED: Line2D([], [], color=BASELINE, marker="o", markersize=3, linewidth=1),
        _DEFAULT: Line2D([], [], color=PROPOSED, marker="D", markersize=4, linestyle=":", linewidth=0.8),
    }
    if data.baseline:
        key[data.baseline.row] = Line2D([], [], color=GREY, linestyle="--", linewidth=1)
    titles = [(f"{panel.method}: {panel.option}", panel.proposed) for panel in data.panels]
    page = panels(titles, 0.85, Frame(left=0.5, across=0.14, down=0.3), data.notes, list(key))
    limits = _limits(data)
    for place, (axes, panel) in enumerate(zip(page.panels, data.panels, strict=True)):
        if data.baseline:
            axes.axhline(data.baseline.mean, color=GREY, linestyle="--", linewidth=1, zorder=1)
        axes.axvline(panel.default, color=PROPOSED, linestyle=":", linewidth=0.8, zorder=0)
        values, means = [value for value, _ in panel.points], [item.mean for _, item in panel.points]
        axes.plot(values, means, color=BASELINE, linewidth=1)
        for value, item in panel.points:
            ours = item.row == panel.reference
            axes.errorbar(
                [value],
                [item.mean],
                yerr=item.half,
                color=PROPOSED if ours else BASELINE,
                marker="D" if ours else "o",
                markersize=4 if ours else 3,
                elinewidth=0.6,
                capsize=1.5,
                capthick=0.6,
                zorder=4 if ours else 3,
            )
        if _logarithmic(values):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        axes.set_ylim(limits)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(labelleft=page.leftmost(place))
    page.name("value of the option", "test accuracy (%)")
    page.key(key)
    return page.figure
