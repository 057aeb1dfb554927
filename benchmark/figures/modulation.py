"""`modulation`: accuracy of each host with and without a modulation around it, by target domain (GMP, Fig. 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from benchmark.figures.group import Finished, Group, NothingToDraw, sentence
from benchmark.figures.sheet import (
    DOUBLE,
    EDGE,
    LINE,
    SINGLE,
    Frame,
    key_height,
    look,
    mark,
    sheet,
    text_width,
    wrapped,
)
from benchmark.protocol import Row, Selection
from benchmark.registry import SIGN
from benchmark.scores import reading, score
from benchmark.statistics import summarise

MEAN = "mean over targets"
ALONE = "accuracy"
"""Name of the one panel of an experiment without target domains."""

_LABEL, _BAR, _ACROSS = 1.3, 0.1, 0.12
_MOST = 4
"""Inches: the widest label, a bar's thickness, between panels; and panels beside each other, at most."""


@dataclass(frozen=True)
class Bar:
    """Accuracies (%) of a row's seeds: mean and SD (None for one seed)."""

    row: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Pair:
    """A host without and with a modulation in one place: a target domain or the mean; `gain` in points."""

    place: str
    host: str
    modulation: str
    without: Bar
    with_it: Bar
    gain: float


@dataclass(frozen=True)
class Modulation:
    """What the figure shows: places, and in each the pairs in the order of the table."""

    places: tuple[str, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def paired(rows: Sequence[Row], reference: str) -> list[tuple[Row | None, Row, str]]:
    """Return every row with a modulation: the row without it (None: there is none), itself, and the modulation's name.

    `host+modulation` belongs to the row `host` of its variant, or to the only one. A row of the modulation itself
    belongs to the experiment's reference, around which it stands in the paper.
    """
    modulations = {row.method.partition(SIGN)[2] for row in rows} - {""}
    found = []
    for row in rows:
        host, sign, modulation = row.method.partition(SIGN)
        if not sign and host not in modulations:
            continue
        host, modulation = (host, modulation) if sign else (reference, host)
        hosts = [other for other in rows if other.method == host]
        same = [other for other in hosts if other.variant == row.variant]
        without = same[0] if same else hosts[0] if len(hosts) == 1 else None
        found.append((without, row, modulation))
    return found


def _values(finished: Finished, rule: Selection) -> dict[str, list[float]]:
    """Return one accuracy per seed for every target domain, and for the mean over them; that alone without targets."""
    places: dict[str, list[float]] = {}
    for records in finished.seeds.values():
        by_target = {}
        for record in records:
            with reading(record, "target"):
                by_target[record["cell"].get("target")] = score(record, "accuracy", rule)
        domains = {name: value for name, value in by_target.items() if name is not None}
        mean = math.fsum(by_target.values()) / len(by_target)
        for place, value in {MEAN if domains else ALONE: mean, **domains}.items():
            places.setdefault(place, []).append(value)
    return places


def _bar(finished: Finished, values: Sequence[float]) -> Bar:
    found = summarise(values)
    sd = None if math.isnan(found.sd) else found.sd
    return Bar(finished.row.label, tuple(finished.seeds), tuple(values), found.mean, sd)


def modulation(group: Group) -> Modulation:
    """Return the bars of every pair of which both rows are finished.

    Raises NothingToDraw for an experiment without such a pair.
    """
    experiment, rule = group.experiment, group.selection
    finished = {each.row.label: each for each in group.rows}
    every = paired(experiment.rows(), experiment.reference)
    lonely = [row.label for without, row, _ in every if without is None]
    pairs = [(without, row, name) for without, row, name in every if without is not None]
    both = [(a, b, name) for a, b, name in pairs if a.label in finished and b.label in finished]
    if not both:
        raise NothingToDraw(
            f"Experiment {experiment.name!r} has no finished row `host` with its `host+modulation`. "
            "Add such rows, and train them."
        )
    found = []
    for without, row, name in both:
        before, after = (_values(finished[each.label], rule) for each in (without, row))
        for place, values in before.items():
            bars = _bar(finished[without.label], values), _bar(finished[row.label], after[place])
            found.append(Pair(place, without.label, name, *bars, gain=bars[1].mean - bars[0].mean))
    halves = [f"{a.label} and {b.label}" for a, b, name in pairs if (a, b, name) not in both]
    single = [bar.row for pair in found for bar in (pair.without, pair.with_it) if bar.sd is None]
    notes = (
        *group.notes(f"Mean ± SD over seeds; epoch selected by {rule}. Numbers: gain in points."),
        *sentence("Not both finished, left out", halves),
        *sentence("No row without the modulation, left out", lonely),
        *sentence("One seed, no SD", list(dict.fromkeys(single))),
    )
    return Modulation(tuple(dict.fromkeys(pair.place for pair in found)), tuple(found), notes)


def _label(pair: Pair, modulations: Mapping[str, None]) -> list[str]:
    return wrapped(pair.host if len(modulations) == 1 else f"{pair.host} + {pair.modulation}", _LABEL, " _+")


def _draw_bars(axes: Axes, pairs: Sequence[Pair], end: float) -> None:
    for place, shift in ((0, -0.2), (1, 0.2)):
        bars = [pair.with_it if place else pair.without for pair in pairs]
        looks = mark(place)
        axes.barh(
            [row + shift for row in range(len(pairs))],
            [bar.mean for bar in bars],
            0.4,
            xerr=[bar.sd or 0.0 for bar in bars],
            color=looks.colour,
            hatch=looks.hatch,
            edgecolor="black",
            linewidth=0.4,
            error_kw={"elinewidth": 0.6, "capsize": 1.2, "capthick": 0.6},
        )
    for row, pair in enumerate(pairs):
        axes.text(end, row, f"{pair.gain:+.1f}".replace("-", "\u2212"), va="center", ha="right")


@look()
def draw(data: Modulation) -> Figure:
    """Draw one panel per place, the mean first, and in it two bars per host from the top, with the gain beside them."""
    modulations = dict.fromkeys(pair.modulation for pair in data.pairs)
    by_place = [[pair for pair in data.pairs if pair.place == place] for place in data.places]
    labels = [_label(pair, modulations) for pair in by_place[0]]
    names = ("without", f"with {next(iter(modulations))}" if len(modulations) == 1 else "with the modulation")
    key = {
        name: Patch(facecolor=mark(at).colour, hatch=mark(at).hatch, edgecolor="black", linewidth=0.4)
        for at, name in enumerate(names)
    }
    columns = min(len(data.places), _MOST)
    width = SINGLE if columns < 2 else DOUBLE
    left = max(text_width(line) for label in labels for line in label) + 0.14
    frame = Frame(left, 0.12, EDGE + key_height(list(key), width) + 1.5 * LINE, 0.34, _ACROSS, 2 * LINE)
    height = len(labels) * max(max(map(len, labels)) * LINE + 0.03, 2.4 * _BAR)
    page = sheet(len(data.places), columns, width, height, frame, data.notes)
    longest = max(bar.mean + (bar.sd or 0.0) for pair in data.pairs for bar in (pair.without, pair.with_it))
    room = text_width("+00.0") + 0.06
    across = frame.panel_width(width, columns)
    end = longest * across / (across - room)
    for place, (axes, pairs, name) in enumerate(zip(page.panels, by_place, data.places, strict=True)):
        _draw_bars(axes, pairs, end)
        axes.set(xlim=(0, end), ylim=(len(labels) - 0.5, -0.5))
        axes.set_title(name, fontweight="bold" if name in (MEAN, ALONE) else "normal")
        axes.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))
        shown = ["\n".join(label) for label in labels] if page.leftmost(place) else [""] * len(labels)
        axes.set_yticks(range(len(labels)), shown)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(labelbottom=page.lowest(place))
    page.name("test accuracy (%)", "")
    page.key(key)
    return page.figure
