"""`overview`: all rows on the balance / non-conflict plane at the end of training (RGM, Fig. 1c)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmark.figures.group import Finished, Group, sentence
from benchmark.figures.sheet import (
    BASELINE,
    EDGE,
    GREY,
    LINE,
    POINT,
    PROPOSED,
    SINGLE,
    SIZE,
    Frame,
    Sheet,
    look,
    sheet,
    text_width,
    weight,
)
from benchmark.figures.spread import Circle, spread
from benchmark.scores import Record, reading, score

LAST_EPOCHS = 5
"""Epochs whose mean cosine stands for the end of training: that of a single epoch is noisy."""

AREAS = (15.0, 150.0)
"""Areas of the spots with the smallest and the largest accuracy, in square points."""

_FRAME = Frame(left=0.56, right=0.12, top=0.56, bottom=0.36)
_HEIGHT = 2.5
_FIGURE_SPACE = "\u2007"


@dataclass(frozen=True)
class Spot:
    """One row, means over its seeds: balance factor at the end, cosine of the last epochs, test accuracy in %."""

    number: int
    row: str
    proposed: bool
    seeds: tuple[int, ...]
    balance: float
    cosine: float
    accuracy: float


@dataclass(frozen=True)
class Overview:
    """What the figure shows; `epochs` are the last ones, whose cosine is averaged."""

    epochs: int
    spots: tuple[Spot, ...]
    notes: tuple[str, ...]


def _cosine(epochs: int, finished: Finished) -> float:
    """Return the mean cosine of the last epochs, nan where one has none."""

    def cosine(record: Record) -> float:
        with reading(record, "cosine"):
            found = [epoch["cosine"] for epoch in record["epochs"][-epochs:]]
            return math.fsum(math.nan if item is None else float(item["mean"]) for item in found) / len(found)

    return _mean(finished.per_seed(cosine))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def overview(group: Group) -> Overview:
    """Return a spot per row that has cosines; raises DataError for a record without the numbers."""
    epochs, rule = min(LAST_EPOCHS, *(finished.epochs() for finished in group.rows)), group.selection
    cosines = [_cosine(epochs, finished) for finished in group.rows]
    rows = [(finished, cosine) for finished, cosine in zip(group.rows, cosines, strict=True) if math.isfinite(cosine)]
    spots = tuple(
        Spot(
            number=number,
            row=finished.row.label,
            proposed=finished.row.proposed,
            seeds=tuple(finished.seeds),
            balance=_mean(finished.per_seed(lambda record: score(record, "balance_factor", rule))),
            cosine=cosine,
            accuracy=_mean(finished.per_seed(lambda record: score(record, "accuracy", rule))),
        )
        for number, (finished, cosine) in enumerate(rows, 1)
    )
    without = [f.row.label for f, cosine in zip(group.rows, cosines, strict=True) if not math.isfinite(cosine)]
    notes = (
        *group.notes(
            f"Means over seeds. Balance factor at the end of training; epoch of the accuracy selected by {rule}."
        ),
        *sentence("No cosine recorded, left out", without),
    )
    return Overview(epochs, spots, notes)


def area(accuracy: float, least: float, most: float) -> float:
    """Return a spot's area in square points, linear in the accuracy; halfway where all are equal."""
    share = (accuracy - least) / (most - least) if most > least else 0.5
    return AREAS[0] + share * (AREAS[1] - AREAS[0])


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that leave room for spots and labels around the values."""
    margin = max(0.2 * (max(values) - min(values)), 0.02)
    return min(values) - margin, max(values) + margin


def _key(page: Sheet, spots: Sequence[Spot], least: float, most: float) -> None:
    """Draw what the markers and their sizes mean, above the panel."""

    def entry(marker: str, colour: str, size: float) -> Line2D:
        # A line's marker size is the square root of a spot's.
        return Line2D([], [], linestyle="", marker=marker, color=colour, alpha=0.6, markersize=math.sqrt(size))

    middle = area(0, 0, 0)
    looks = {
        "baseline": entry("o", BASELINE, middle),
        "proposed": entry("D", PROPOSED, middle * math.pi / 4),
    }
    present = {"proposed" if spot.proposed else "baseline" for spot in spots}
    kinds = {name: line for name, line in looks.items() if name in present}
    shown = dict.fromkeys([least, (least + most) / 2, most])
    sizes = {f"{value:.1f} %": entry("o", GREY, area(value, least, most)) for value in shown}
    for place, (title, entries) in enumerate((("", kinds), ("accuracy", sizes))):
        page.figure.legend(
            list(entries.values()),
            [f"{title} {name}" if title and number == 0 else name for number, name in enumerate(entries)],
            loc="center left",
            bbox_to_anchor=page.inches(EDGE, -0.15 - 0.22 * place),
            ncols=len(entries),
            borderaxespad=0,
            columnspacing=1.2,
        )


def _spots(axes: Axes, data: Overview, panel: tuple[float, float], least: float, most: float) -> None:
    """Draw the spots and their numbers; `panel` is the size of the axes in points."""
    horizontal, vertical = (
        _limits([spot.balance for spot in data.spots]),
        _limits([spot.cosine for spot in data.spots]),
    )
    circles: list[Circle] = []
    for spot in data.spots:
        size = area(spot.accuracy, least, most)
        marker, colour = ("D", PROPOSED) if spot.proposed else ("o", BASELINE)
        # A circle of "size" s covers pi / 4 s, a diamond s.
        shown = size * math.pi / 4 if spot.proposed else size
        axes.scatter(
            [spot.balance],
            [spot.cosine],
            s=shown,
            marker=marker,
            color=colour,
            alpha=0.6,
            edgecolors="black",
            linewidths=0.5,
            # Small spots lie on large ones.
            zorder=3 - size / AREAS[1],
        )
        x = (spot.balance - horizontal[0]) / (horizontal[1] - horizontal[0]) * panel[0]
        y = (spot.cosine - vertical[0]) / (vertical[1] - vertical[0]) * panel[1]
        # Half the diagonal of the diamond, the radius of the circle.
        circles.append((x, y, math.sqrt(shown / 2 if spot.proposed else size / 4)))
    axes.set(xlim=horizontal, ylim=vertical)
    leader = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 0}
    box = (text_width(str(max(spot.number for spot in data.spots))) / POINT + 2, SIZE)
    for spot, circle, place in zip(data.spots, circles, spread(circles, box, panel), strict=True):
        axes.annotate(
            str(spot.number),
            (circle[0] / panel[0], circle[1] / panel[1]),
            (place[0] / panel[0], place[1] / panel[1]),
            xycoords="axes fraction",
            textcoords="axes fraction",
            ha="center",
            va="center_baseline",
            fontweight=weight(spot.proposed),
            arrowprops=leader if math.dist(place, circle[:2]) > circle[2] + 1.5 * SIZE else None,
        )


@look()
def draw(data: Overview) -> Figure:
    """Draw the numbered spots, what marker and size mean above them, and the names of the numbers below."""
    digits = len(str(len(data.spots)))
    # Figure spaces are as wide as digits.
    names = [f"{str(spot.number).rjust(digits, _FIGURE_SPACE)}  {spot.row}" for spot in data.spots]
    longest = max(map(text_width, names), default=0.0)
    columns = max(1, min(3, int((SINGLE - EDGE) / (longest + 0.15))))
    lines = -(-len(names) // columns)
    frame = Frame(_FRAME.left, _FRAME.right, _FRAME.top, _FRAME.bottom + lines * LINE + 2 * EDGE)
    page = sheet(1, 1, SINGLE, _HEIGHT, frame, data.notes)
    [axes] = page.panels
    _, y0, _, _ = page.bounds()
    page.name("balance factor at the end", f"cosine, mean of the last {data.epochs} epochs")
    if not data.spots:
        axes.text(0.5, 0.5, "no cosine recorded", transform=axes.transAxes, ha="center", color=GREY)
        return page.figure
    accuracies = [spot.accuracy for spot in data.spots]
    least, most = min(accuracies), max(accuracies)
    panel = ((SINGLE - _FRAME.left - _FRAME.right) / POINT, _HEIGHT / POINT)
    _spots(axes, data, panel, least, most)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    _key(page, data.spots, least, most)
    for place, (name, spot) in enumerate(zip(names, data.spots, strict=True)):
        column, line = divmod(place, lines)
        x = page.inches(EDGE + column * (SINGLE - EDGE) / columns, 0)[0]
        y = y0 - page.inches(0, _FRAME.bottom + EDGE + (line + 1) * LINE - 0.02)[1]
        page.figure.text(x, y, name, fontweight=weight(spot.proposed))
    return page.figure
