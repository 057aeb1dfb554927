"""`specific`: the test accuracy that a model loses without one modality (RGM, Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmark.figures.group import Finished, Group, sentence
from benchmark.figures.sheet import (
    EDGE,
    LINE,
    SINGLE,
    Frame,
    key_height,
    look,
    mark,
    sheet,
    text_width,
    weight,
    wrapped,
)
from benchmark.protocol import Selection
from benchmark.scores import Record, reading, select_epoch
from benchmark.statistics import summarise

_LABEL, _BAR = 1.3, 0.09
"""Inches: the widest label of a row, and a bar's thickness."""


@dataclass(frozen=True)
class Bar:
    """Points of test accuracy lost without a modality: mean and SD (None for one seed) over the values of the seeds."""

    row: str
    proposed: bool
    modality: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Specific:
    """What the figure shows: bars row by row, in each row in the order of the modalities."""

    modalities: tuple[str, ...]
    bars: tuple[Bar, ...]
    notes: tuple[str, ...]


def _lost(modality: str, rule: Selection) -> Callable[[Record], float]:
    def lost(record: Record) -> float:
        with reading(record, f"accuracy without {modality} under the rule {rule}"):
            test = select_epoch(record["epochs"], rule)["test"]
            return 100 * (float(test["accuracy"]) - float(test["missing"][modality]))

    return lost


def _bar(finished: Finished, modality: str, rule: Selection) -> Bar:
    values = finished.per_seed(_lost(modality, rule))
    found = summarise(values)
    sd = None if math.isnan(found.sd) else found.sd
    row = finished.row
    return Bar(row.label, row.proposed, modality, tuple(finished.seeds), tuple(values), found.mean, sd)


def specific(group: Group) -> Specific:
    """Return the loss of accuracy of every row and modality; raises DataError for a record without it."""
    names = group.modalities()
    bars = tuple(_bar(finished, name, group.selection) for finished in group.rows for name in names)
    notes = (
        *group.notes(f"Mean ± SD over seeds; epoch selected by {group.selection}."),
        *sentence("One seed, no SD", list(dict.fromkeys(bar.row for bar in bars if bar.sd is None))),
    )
    return Specific(names, bars, notes)


@look()
def draw(data: Specific) -> Figure:
    """Draw a group of bars per row, from the top, with the modalities' legend above."""
    rows = list(dict.fromkeys((bar.row, bar.proposed) for bar in data.bars))
    count = len(data.modalities)
    thick = 1 / (count + 0.7)
    labels = [wrapped(row, _LABEL, " _") for row, _ in rows]
    left = max(text_width(line) for label in labels for line in label) + 0.14
    key = [f"without {modality}" for modality in data.modalities]
    frame = Frame(left=left, top=EDGE + key_height(key, SINGLE), bottom=0.34, right=0.12)
    height = max(max(map(len, labels)) * LINE + 0.03, (count + 0.7) * _BAR)
    page = sheet(1, 1, SINGLE, len(rows) * height, frame, data.notes)
    [axes] = page.panels
    drawn = []
    for place, modality in enumerate(data.modalities):
        bars = [bar for bar in data.bars if bar.modality == modality]
        looks = mark(place)
        drawn.append(
            axes.barh(
                [row + (place - (count - 1) / 2) * thick for row in range(len(rows))],
                [bar.mean for bar in bars],
                thick,
                xerr=[bar.sd or 0.0 for bar in bars],
                color=looks.colour,
                hatch=looks.hatch,
                edgecolor="black",
                linewidth=0.4,
                error_kw={"elinewidth": 0.6, "capsize": 1.2, "capthick": 0.6},
            )[0]
        )
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="test accuracy lost (points)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(range(len(rows)), ["\n".join(label) for label in labels])
    for text, (_, proposed) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight(weight(proposed))
    axes.tick_params(axis="y", length=0)
    page.key(dict(zip(key, drawn, strict=True)))
    return page.figure
