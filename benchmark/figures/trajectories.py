"""`trajectories`: what methods note about themselves, epoch by epoch; for GMP its discrepancy ratios (GMP, Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmark.figures.group import Finished, Group, NothingToDraw, sentence
from benchmark.figures.sheet import Frame, Mark, look, mark, panels
from benchmark.scores import Record, reading

_FIRST = "the first row with this quantity"
_WHOLE = Mark("black", "", "-")
_ZERO, _BEHIND = "#bbbbbb", "#888888"

_LEAST, _MOST = 3, 5
"""Panels beside each other."""

Course = dict[int, float]
"""A number by epoch, from 1."""


@dataclass(frozen=True)
class Line:
    """A number at the epochs (from 1) that note it: mean over the seeds, the smallest and the largest seed.

    `part` is what it is of, a modality as a rule; empty for one number of the whole model.
    """

    part: str
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One quantity of one row, a line for each of its parts."""

    row: str
    proposed: bool
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Quantity:
    """What rows note under one name because they share a method, alone or as a host or its modulation."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Trajectories:
    """What the figure shows: quantity by quantity, and of each the rows in the order of the table."""

    parts: tuple[str, ...]
    quantities: tuple[Quantity, ...]
    notes: tuple[str, ...]


def split_names(names: Iterable[str], modalities: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return quantity and part of every noted name: `log rho, upper` and `weight of upper` name a modality at the end.

    What else follows the same words is a part beside the modalities; any other name is a quantity without parts.
    """
    every = list(names)
    stems = {name.removesuffix(m) for name in every for m in modalities if name.endswith(f" {m}")}

    def parted(name: str) -> tuple[str, str]:
        for stem in sorted(stems, key=len, reverse=True):
            if name.startswith(stem):
                return stem.rstrip(" ,").removesuffix(" of"), name.removeprefix(stem)
        return name, ""

    return {name: parted(name) for name in every}


def _noted(record: Record) -> dict[str, Course]:
    """Return every name that a run notes, and its finite numbers by epoch."""
    found: dict[str, Course] = {}
    with reading(record, "notes"):
        for epoch, entry in enumerate(record["epochs"], 1):
            for name, value in entry["notes"].items():
                if math.isfinite(value):
                    found.setdefault(name, {})[epoch] = float(value)
    return found


def _mean(courses: Sequence[Course]) -> Course:
    """Return the mean at the epochs that all courses have."""
    shared = set.intersection(*(set(course) for course in courses))
    return {epoch: math.fsum(course[epoch] for course in courses) / len(courses) for epoch in sorted(shared)}


def _line(part: str, seeds: Sequence[Course]) -> Line:
    epochs = sorted(set().union(*seeds))
    values = [[course[epoch] for course in seeds if epoch in course] for epoch in epochs]
    return Line(
        part,
        tuple(epochs),
        mean=tuple(math.fsum(some) / len(some) for some in values),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
    )


def _panels(finished: Finished, modalities: Sequence[str]) -> dict[str, Panel]:
    """Return a panel for each quantity that a row notes."""
    runs = [[_noted(record) for record in records] for records in finished.seeds.values()]
    names = dict.fromkeys(name for targets in runs for notes in targets for name in notes)
    quantities: dict[str, list[Line]] = {}
    for name, (quantity, part) in split_names(names, modalities).items():
        seeds = [_mean([notes.get(name, {}) for notes in targets]) for targets in runs]
        if any(seeds):
            quantities.setdefault(quantity, []).append(_line(part, seeds))
    row, seeds_of = finished.row, tuple(finished.seeds)
    return {name: Panel(row.label, row.proposed, seeds_of, tuple(lines)) for name, lines in quantities.items()}


def trajectories(group: Group) -> Trajectories:
    """Return the noted numbers of every row that has any.

    Raises DataError for a record without notes, NothingToDraw where no row notes anything.
    """
    modalities = group.modalities()
    found: list[tuple[str, set[str], list[Panel]]] = []
    silent = []
    for finished in group.rows:
        methods, own = set(finished.row.parts), _panels(finished, modalities)
        for name, panel in own.items():
            shared = [entry for entry in found if entry[0] == name and entry[1] & methods]
            if shared:
                shared[0][2].append(panel)
            else:
                found.append((name, methods, [panel]))
        silent += [] if own else [finished.row.label]
    if not found:
        raise NothingToDraw(
            f"No method of experiment {group.experiment.name!r} notes a number while it trains. "
            "Draw another kind, or call `ctx.note` in the method."
        )
    named = dict.fromkeys(line.part for _, _, panels_of in found for panel in panels_of for line in panel.lines)
    notes = group.notes(
        "Means of an epoch's steps, of targets and of the seeds that note it; band from the smallest to the largest "
        "seed. Panels of one quantity share their axis; grey: its first row."
    )
    return Trajectories(
        (*(name for name in modalities if name in named), *(name for name in named if name not in modalities)),
        tuple(Quantity(name, tuple(panels_of)) for name, _, panels_of in found),
        (*notes, *sentence("Nothing noted", silent)),
    )


def slots(counts: Sequence[int], columns: int) -> list[list[int]]:
    """Return the places of each quantity's panels: it starts on a new line unless it fits into what is left of one."""
    found, free = [], 0
    for count in counts:
        left = -free % columns
        start = free + left if count > left else free
        found.append(list(range(start, start + count)))
        free = start + count
    return found


def _columns(counts: Sequence[int]) -> int:
    """Return how many panels stand side by side: as few as make the fewest lines."""
    most = min(_MOST, sum(counts))
    return min(range(min(_LEAST, most), most + 1), key=lambda columns: slots(counts, columns)[-1][-1] // columns)


def _plot(axes: Axes, line: Line, looks: Mark) -> None:
    epochs = range(line.epochs[0], line.epochs[-1] + 1)
    means, lows, highs = (
        [dict(zip(line.epochs, values, strict=True)).get(epoch, math.nan) for epoch in epochs]
        for values in (line.mean, line.low, line.high)
    )
    axes.fill_between(epochs, lows, highs, color=looks.colour, alpha=0.2, linewidth=0)
    # Nothing is drawn over epochs without the number; a dot shows an epoch that stands alone.
    marker = "." if len(line.epochs) < len(epochs) or len(epochs) == 1 else ""
    if marker:
        axes.vlines(epochs, lows, highs, color=looks.colour, alpha=0.2, linewidth=1)
    axes.plot(epochs, means, color=looks.colour, linestyle=looks.line, linewidth=1, marker=marker, markersize=2)


def _scale(axes: Sequence[Axes], shown: Sequence[Panel]) -> None:
    """Give the panels of one quantity one axis."""
    numbers = [value for panel in shown for line in panel.lines for value in (*line.low, *line.high)]
    low, high = min(numbers), max(numbers)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    for each in axes:
        each.set_ylim(low - margin, high + margin)
        each.yaxis.set_major_locator(MaxNLocator(3))
        each.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:.3g}"))


@look()
def draw(data: Trajectories) -> Figure:
    """Draw one panel per quantity and row, the quantity's first row behind the others."""
    looks = {part: mark(place) for place, part in enumerate(filter(None, data.parts))} | {"": _WHOLE}
    key = {
        part or "whole model": Line2D([], [], color=looks[part].colour, linestyle=looks[part].line)
        for part in data.parts
    }
    counts = [len(quantity.panels) for quantity in data.quantities]
    if max(counts) > 1:
        key[_FIRST] = Line2D([], [], color=_BEHIND, linewidth=0.7)
    columns = _columns(counts)
    places = slots(counts, columns)
    titles = [("", False)] * (1 + places[-1][-1])
    for quantity, own in zip(data.quantities, places, strict=True):
        for panel, place in zip(quantity.panels, own, strict=True):
            titles[place] = (f"{panel.row}: {quantity.name}", panel.proposed)
    page = panels(titles, 0.8, Frame(left=0.55, across=0.42, down=0.24), data.notes, list(key), columns)
    last = max(line.epochs[-1] for quantity in data.quantities for panel in quantity.panels for line in panel.lines)
    for axes in page.panels:
        axes.set_visible(False)
    for quantity, own in zip(data.quantities, places, strict=True):
        shown = [page.panels[place] for place in own]
        for axes, panel in zip(shown, quantity.panels, strict=True):
            axes.set_visible(True)
            axes.axhline(0, color=_ZERO, linewidth=0.5, zorder=0)
            for line in quantity.panels[0].lines if panel is not quantity.panels[0] else ():
                axes.plot(line.epochs, line.mean, color=_BEHIND, linewidth=0.7, linestyle=looks[line.part].line)
            for line in panel.lines:
                _plot(axes, line, looks[line.part])
            axes.set_xlim(0.5, last + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        _scale(shown, quantity.panels)
    page.name("epoch", "noted number")
    page.key(key)
    return page.figure
