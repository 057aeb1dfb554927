"""Figures of one run as a Markdown table, and the page that shows it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from benchmark.errors import DataError

START, END = "<!-- table: peers -->", "<!-- end table -->"


@dataclass(frozen=True)
class Turn:
    """Seconds of an epoch of `clips` clips, and how many of them its input took."""

    epoch: float
    input: float
    clips: int

    @property
    def step(self) -> float:
        """Seconds of all that is not input."""
        return self.epoch - self.input


@dataclass(frozen=True)
class Figures:
    """One contestant: a turn per round, and the seconds per clip that preparing takes once."""

    title: str
    turns: Sequence[Turn]
    prepared: float


def rows(found: Sequence[Figures]) -> list[list[str]]:
    """Return a row per contestant; the first is the yardstick of ratios, each the median over the rounds."""
    yardstick = found[0]

    def cell(own: Figures, kind: str, decimals: int) -> str:
        values = [float(getattr(turn, kind)) for turn in own.turns]
        bases = [float(getattr(turn, kind)) for turn in yardstick.turns]
        ratio = statistics.median(value / base for value, base in zip(values, bases, strict=True))
        each = 1e3 * statistics.median(values) / own.turns[0].clips
        return f"{each:.{decimals}f}" + ("" if own is yardstick else f" ({ratio:.2f}x)")

    def prepared(own: Figures) -> str:
        ratio = own.prepared / yardstick.prepared
        return f"{1e3 * own.prepared:.1f}" + ("" if own is yardstick else f" ({ratio:.2f}x)")

    return [
        [own.title, cell(own, "input", 2), cell(own, "step", 1), cell(own, "epoch", 1), prepared(own)] for own in found
    ]


def rendered(found: Sequence[Figures], notes: Mapping[str, str]) -> str:
    """Return the table, and below it how it was made."""
    headers = ["ms per clip (ratio to the first row)", "input", "step", "epoch", "once per dataset"]
    table = tabulate(rows(found), headers, "github", disable_numparse=True)
    return "\n".join([table, "", *(f"- {name}: {text}" for name, text in notes.items())])


def with_table(page: str, table: str) -> str:
    """Return a page's text with the table between its two marks; raises DataError without them."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise DataError(f"The page lacks {START} or {END}. Put both where the table belongs.")
    return f"{before}{START}\n\n{table}\n\n{END}{after}"
