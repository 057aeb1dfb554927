"""Figures from the finished cells of any experiment: numbers first, then the drawing, then the files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmark.figures import (
    energy,
    modulation,
    overview,
    plane,
    sensitivity,
    specific,
    structure,
    trajectories,
)
from benchmark.figures.group import Group, NothingToDraw, groups
from benchmark.figures.sheet import look
from benchmark.protocol import Experiment
from benchmark.scores import Record
from benchmark.store import write_atomically

FIGURE_SCHEMA = 1


@dataclass(frozen=True)
class Kind:
    """A kind of figure: from a column group to its numbers, from the numbers to the drawing."""

    numbers: Callable[[Group], Any]
    draw: Callable[[Any], Figure]


KINDS = {
    "plane": Kind(plane.plane, plane.draw),
    "specific": Kind(specific.specific, specific.draw),
    "energy": Kind(energy.energy, energy.draw),
    "overview": Kind(overview.overview, overview.draw),
    "trajectories": Kind(trajectories.trajectories, trajectories.draw),
    "sensitivity": Kind(sensitivity.sensitivity, sensitivity.draw),
    "modulation": Kind(modulation.modulation, modulation.draw),
    "structure": Kind(structure.structure, structure.draw),
}


def _picture(figure: Figure, form: str) -> bytes:
    """Return the figure as `png` or `svg`, without date and version, so that equal figures are equal files."""
    stream = io.BytesIO()
    with look():
        if form == "png":
            FigureCanvasAgg(figure)
            figure.savefig(stream, format="png", metadata={"Software": None})
        else:
            FigureCanvasSVG(figure)
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _document(name: str, group: Group, numbers: Any) -> str:
    experiment = group.experiment
    content = {
        "schema": FIGURE_SCHEMA,
        "figure": name,
        "experiment": experiment.name,
        "title": experiment.title,
        "column": group.column,
        "selection": group.selection,
        "seeds": list(range(experiment.seeds)),
        "left_out": group.left_out,
        "origin": asdict(group.origin),
        "command": f"equipoise figure {name} {experiment.name}",
        "numbers": asdict(numbers),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _numbers(kind: Kind, found: Iterable[Group]) -> list[tuple[Group, Any]]:
    """Return the groups that have something to draw, with it; raises NothingToDraw where none has."""
    drawn, reasons = [], []
    for group in found:
        try:
            drawn.append((group, kind.numbers(group)))
        except NothingToDraw as reason:
            reasons.append(reason)
    if not drawn:
        raise reasons[0]
    return drawn


def write(name: str, experiment: Experiment, records: Iterable[Record], out: Path) -> list[Path]:
    """Draw a figure of every column group and return its files in `out`: PNG, SVG and the numbers as JSON.

    `name` is one of `KINDS`. Raises UsageError when no cell is finished, NothingToDraw when no column group has what
    the figure is about, DataError for a record without the numbers.
    """
    kind, files = KINDS[name], []
    for group, numbers in _numbers(kind, groups(experiment, records)):
        stem = "_".join(filter(None, [experiment.name, name, *group.name.split(" · ")]))
        figure = kind.draw(numbers)
        contents: dict[str, str | bytes] = {
            "png": _picture(figure, "png"),
            "svg": _picture(figure, "svg"),
            "json": _document(name, group, numbers),
        }
        for suffix, content in contents.items():
            write_atomically(out / f"{stem}.{suffix}", content)
            files.append(out / f"{stem}.{suffix}")
    return files
