"""`plane`: every row's way over the balance / non-conflict plane while it trains (RGM, Fig. 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from benchmark.figures.group import Finished, Group
from benchmark.figures.sheet import GREY, Frame, look, panels
from benchmark.scores import Record, reading

POINTS_PER_RUN = 200
"""More points hide each other in a panel."""

DIGITS = 4
"""Decimals of the plotted numbers: more would not show."""

# From yellow to violet: what is drawn last, on top, is dark.
_COLOURS = "viridis_r"

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Panel:
    """One row's points (progress in % of the run, balance factor, cosine) of all seeds, in the order of progress."""

    row: str
    proposed: bool
    seeds: tuple[int, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Plane:
    """What the figure shows."""

    panels: tuple[Panel, ...]
    notes: tuple[str, ...]


def thinned(points: list[Point], most: int = POINTS_PER_RUN) -> list[Point]:
    """Return at most `most` of the points, evenly spaced, with the first and the last one."""
    if len(points) <= most:
        return points
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _points(record: Record) -> Iterator[Point]:
    with reading(record, "plane"):
        for past, epoch in enumerate(record["epochs"]):
            for share, balance, cosine in epoch["plane"]:
                if cosine is not None:
                    progress = 100 * (past + share) / len(record["epochs"])
                    yield round(progress, DIGITS), round(balance, DIGITS), round(cosine, DIGITS)


def _panel(finished: Finished) -> Panel:
    points = [point for record in finished.records() for point in thinned(list(_points(record)))]
    row = finished.row
    return Panel(row.label, row.proposed, tuple(finished.seeds), tuple(sorted(points, key=lambda point: point[0])))


def plane(group: Group) -> Plane:
    """Return the points of every row; raises DataError for a record without them."""
    notes = group.notes(f"All seeds, at most {POINTS_PER_RUN} evenly spaced steps of each run.")
    return Plane(tuple(_panel(finished) for finished in group.rows), notes)


@look()
def draw(data: Plane) -> Figure:
    """Draw one panel per row, with one colour bar for all."""
    rows = [(panel.row, panel.proposed) for panel in data.panels]
    page = panels(rows, 1.0, Frame(left=0.5, right=0.62, across=0.12), data.notes)
    scale = Normalize(0, 100)
    for place, (axes, panel) in enumerate(zip(page.panels, data.panels, strict=True)):
        axes.axhline(0, color="#bbbbbb", linewidth=0.5, zorder=0)
        axes.axvline(0, color="#bbbbbb", linewidth=0.5, zorder=0)
        if panel.points:
            progress, balance, cosine = zip(*panel.points, strict=True)
            # Pixels: thousands of shapes would make the SVG too big to open.
            axes.scatter(
                balance,
                cosine,
                s=3,
                c=progress,
                cmap=_COLOURS,
                norm=scale,
                linewidths=0,
                rasterized=True,
                clip_on=False,
            )
        else:
            axes.text(0.5, 0.6, "no cosine\nrecorded", transform=axes.transAxes, ha="center", va="bottom", color=GREY)
        axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axes.tick_params(labelbottom=page.lowest(place), labelleft=page.leftmost(place))
    page.name("balance factor", "cosine of feature gradients")
    _, bottom, right, top = page.bounds()
    width_of_bar, height = page.inches(0.08, 2.5)
    height = min(top - bottom, height)
    place_of_bar = (right + page.inches(0.12, 0)[0], (bottom + top - height) / 2, width_of_bar, height)
    bar = page.figure.colorbar(ScalarMappable(scale, _COLOURS), cax=page.figure.add_axes(place_of_bar))
    bar.set_label("progress of the run (%)")
    bar.outline.set_visible(False)
    return page.figure
