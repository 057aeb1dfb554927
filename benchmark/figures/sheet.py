"""What all figures share: the type, the looks of modalities and rows, and the sheet of panels with notes below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

SINGLE, DOUBLE = 3.4, 7.0
"""Widths in inches: one and two columns of a paper, so that figures are printed at their own size."""

SIZE = 7.0
"""Size of all text in points."""

POINT = 1 / 72
LINE = 1.25 * SIZE * POINT
EDGE = 0.06

GREY = "#555555"

_STYLE: dict[str, Any] = {
    "font.size": SIZE,
    **{f"{name}.labelsize": SIZE for name in ("axes", "xtick", "ytick")},
    "axes.titlesize": SIZE,
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "axes.linewidth": 0.5,
    **{f"{axis}tick.{part}": value for axis in "xy" for part, value in (("major.width", 0.5), ("major.size", 2))},
    **{f"{axis}tick.{part}": value for axis in "xy" for part, value in (("minor.size", 0), ("major.pad", 2))},
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.5,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "legend.fontsize": SIZE,
    "legend.columnspacing": 1.2,
    "legend.borderpad": 0,
    # Shapes instead of text look alike wherever the file is opened; a fixed salt gives the same file every time.
    "svg.fonttype": "path",
    "svg.hashsalt": "equipoise",
    "savefig.dpi": 200,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw and save in the figures' own style, whatever the user's matplotlib is set to."""
    with style.context(["default", _STYLE]):
        yield


class Mark(NamedTuple):
    """How one modality looks; each part alone tells it from the others."""

    colour: str
    hatch: str
    line: Any


# Colours of Okabe and Ito (Color Universal Design, 2008), ordered so that neighbours differ in lightness.
_MARKS = (
    Mark("#0072B2", "", "-"),
    Mark("#E69F00", "////", "--"),
    Mark("#009E73", "....", "-."),
    Mark("#CC79A7", "xxxx", (0, (4, 1, 1, 1, 1, 1))),
    Mark("#56B4E9", "\\\\\\\\", (0, (1, 1))),
)
BASELINE, PROPOSED = "#0072B2", "#D55E00"


def mark(place: int) -> Mark:
    """Return the look of the modality at this place of the dataset's order."""
    return _MARKS[place % len(_MARKS)]


def weight(proposed: bool) -> str:
    """Return the font weight of a row's label: proposed methods are bold."""
    return "bold" if proposed else "normal"


def text_width(text: str) -> float:
    """Return the width of a line of text in inches, by the bold face, which is the wider one."""
    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), text, size=SIZE, prop=FontProperties(weight="bold")).get_extents().width) * POINT


def wrapped(text: str, width: float, breaks: str = " ") -> list[str]:
    """Return the text in lines of at most `width` inches, broken after one of `breaks` where it can be."""
    lines = [""]
    for piece in _pieces(text, breaks):
        if lines[-1] and text_width((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _pieces(text: str, breaks: str) -> Iterator[str]:
    start = 0
    for place, character in enumerate(text, 1):
        if character in breaks:
            yield text[start:place]
            start = place
    yield text[start:]


@dataclass(frozen=True)
class Frame:
    """Space around the panels and between them, in inches."""

    left: float = 0.45
    right: float = 0.1
    top: float = EDGE
    bottom: float = 0.36
    across: float = 0.1
    down: float = 0.14

    def panel_width(self, width: float, columns: int) -> float:
        """Return the width of a panel on a sheet of this width."""
        return (width - self.left - self.right - (columns - 1) * self.across) / columns


@dataclass(frozen=True)
class Sheet:
    """A figure with its panels in reading order."""

    figure: Figure
    panels: list[Axes]
    columns: int

    def lowest(self, place: int) -> bool:
        """Return whether no panel is below this one."""
        return place + self.columns >= len(self.panels)

    def leftmost(self, place: int) -> bool:
        """Return whether no panel is left of this one."""
        return place % self.columns == 0

    def rightmost(self, place: int) -> bool:
        """Return whether no panel is right of this one."""
        return (place + 1) % self.columns == 0 or place == len(self.panels) - 1

    def inches(self, x: float, y: float) -> tuple[float, float]:
        """Return a place, in inches from the left and the bottom (from the right and the top where negative)."""
        width, height = self.figure.get_size_inches()
        return (x if x >= 0 else width + x) / width, (y if y >= 0 else height + y) / height

    def bounds(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right and top of the block of panels, in parts of the figure."""
        boxes = [axes.get_position() for axes in self.panels]
        lefts, bottoms, rights, tops = zip(*((box.x0, box.y0, box.x1, box.y1) for box in boxes), strict=True)
        return min(lefts), min(bottoms), max(rights), max(tops)

    def name(self, below: str, left: str, right: str = "") -> None:
        """Name the axes once for all panels."""
        x0, y0, x1, y1 = self.bounds()
        edge = self.inches(EDGE, 0)[0]
        self.figure.text((x0 + x1) / 2, y0 - self.inches(0, 0.3)[1], below, ha="center")
        height = (y1 - y0) * self.figure.get_figheight() + 0.3
        for x, text, side in ((edge, left, "left"), (1 - edge, right, "right")):
            lines = "\n".join(wrapped(text, height))
            self.figure.text(x, (y0 + y1) / 2, lines, rotation=90, va="center", ha=side, multialignment="center")

    def key(self, entries: Mapping[str, Artist]) -> None:
        """Draw the legend at the top; `key_height` says how much room it needs."""
        self.figure.legend(
            list(entries.values()),
            list(entries),
            loc="upper center",
            bbox_to_anchor=(0.5, self.inches(0, -EDGE)[1]),
            ncols=_key_columns(list(entries), self.figure.get_figwidth()),
            borderaxespad=0,
        )


def _key_columns(labels: Sequence[str], width: float) -> int:
    beside, room = 0.42, width - 2 * EDGE
    widths = [text_width(label) + beside for label in labels]
    return len(labels) if sum(widths) <= room else max(1, int(room / max(widths)))


def key_height(labels: Sequence[str], width: float) -> float:
    """Return the inches that a legend of these labels takes at the top of a sheet."""
    return EDGE + -(-len(labels) // _key_columns(labels, width)) * 1.6 * SIZE * POINT


def panels(
    rows: Sequence[tuple[str, bool]],
    ratio: float,
    frame: Frame,
    notes: Sequence[str],
    key: Sequence[str] = (),
    columns: int | None = None,
) -> Sheet:
    """Return a sheet with a panel per row (label, proposed), titled with the label; `ratio` is height to width.

    One or two rows fit in one column of a paper, more are spread over both, in `columns` or up to five. Room for the
    titles and for the labels of a `key` is added to the frame.
    """
    width = SINGLE if len(rows) < 3 else DOUBLE
    columns = columns or -(-len(rows) // -(-len(rows) // 5))
    across = frame.panel_width(width, columns)
    titles = [wrapped(label, across, " _") for label, _ in rows]
    first, most = (max(len(title) for title in some) for some in (titles[:columns], titles))
    above = key_height(key, width) if key else 0.0
    frame = replace(frame, top=frame.top + above + first * LINE, down=frame.down + most * LINE)
    page = sheet(len(rows), columns, width, ratio * across, frame, notes)
    for axes, title, (_, proposed) in zip(page.panels, titles, rows, strict=True):
        axes.set_title("\n".join(title), fontweight=weight(proposed))
    return page


def sheet(count: int, columns: int, width: float, height: float, frame: Frame, notes: Sequence[str]) -> Sheet:
    """Return a sheet `width` inches wide of `count` panels `height` inches high, with the notes below them."""
    rows = -(-count // columns)
    lines = [line for note in notes for line in wrapped(note, width - 2 * EDGE)]
    foot = len(lines) * LINE + (2 * EDGE if lines else 0)
    total = frame.top + rows * height + (rows - 1) * frame.down + frame.bottom + foot
    figure = Figure(figsize=(width, total))
    across = frame.panel_width(width, columns)
    found = []
    for place in range(count):
        down, right = divmod(place, columns)
        left = frame.left + right * (across + frame.across)
        bottom = total - frame.top - height - down * (height + frame.down)
        found.append(figure.add_axes((left / width, bottom / total, across / width, height / total)))
    for place, line in enumerate(reversed(lines)):
        figure.text(EDGE / width, (EDGE + place * LINE) / total, line, va="bottom", color=GREY)
    return Sheet(figure, found, columns)
