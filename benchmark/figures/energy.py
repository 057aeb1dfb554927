"""`energy`: cumulative gradient energy of each modality beside the training loss (RGM, Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmark.figures.group import Finished, Group, sentence
from benchmark.figures.sheet import Frame, look, mark, panels
from benchmark.scores import Record, reading

DECADES = 2
"""From this ratio of the largest to the smallest number on, in powers of ten, an axis is logarithmic."""

_LOSS = "black"

_PLAIN = range(-2, 3)
"""Powers of ten that the labels of an axis write out."""


@dataclass(frozen=True)
class Curve:
    """A number per epoch: its mean over the seeds, the smallest and the largest seed."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One row's curves: cumulative energy per modality and training loss."""

    row: str
    proposed: bool
    seeds: tuple[int, ...]
    energy: dict[str, Curve]
    loss: Curve


@dataclass(frozen=True)
class Energy:
    """What the figure shows."""

    modalities: tuple[str, ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]


def _curve(finished: Finished, what: str, number: Callable[[Record], float]) -> Curve:
    def at(epoch: int) -> Callable[[Record], float]:
        def read(record: Record) -> float:
            with reading(record, what):
                return float(number(record["epochs"][epoch]))

        return read

    values = [finished.per_seed(at(epoch)) for epoch in range(finished.epochs())]
    return Curve(
        mean=tuple(math.fsum(seeds) / len(seeds) for seeds in values),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
    )


def _panel(finished: Finished, modalities: tuple[str, ...]) -> Panel:
    def energy(name: str) -> Curve:
        return _curve(finished, f"energy of {name}", lambda epoch: epoch["energy"][name])

    return Panel(
        row=finished.row.label,
        proposed=finished.row.proposed,
        seeds=tuple(finished.seeds),
        energy={name: energy(name) for name in modalities},
        loss=_curve(finished, "loss", lambda epoch: epoch["loss"]),
    )


def energy(group: Group) -> Energy:
    """Return the curves of every row; raises DataError for a record without them."""
    names = group.modalities()
    found = tuple(_panel(finished, names) for finished in group.rows)
    curves = [(f"{panel.row}: {name}", curve) for panel in found for name, curve in panel.energy.items()]
    zero = [where for where, curve in curves if not any(curve.mean)]
    return Energy(
        modalities=names,
        panels=found,
        notes=(
            *group.notes(
                "Mean over seeds; band from the smallest to the largest seed. Raw gradients of the trained loss."
            ),
            *sentence("No energy", zero),
        ),
    )


def spans_decades(curves: Iterable[Curve]) -> bool:
    """Return whether the curves' positive numbers ask for a logarithmic axis; a negative number forbids it."""
    numbers = [number for curve in curves for number in (*curve.low, *curve.high)]
    positive = [number for number in numbers if number > 0]
    return bool(positive) and min(numbers) >= 0 and max(positive) >= 10**DECADES * min(positive)


def _plot(axes: Axes, curve: Curve, **looks: Any) -> None:
    epochs = range(1, len(curve.mean) + 1)
    axes.fill_between(epochs, curve.low, curve.high, color=looks["color"], alpha=0.2, linewidth=0)
    axes.plot(epochs, curve.mean, linewidth=1, **looks)


def _scale(axes: Iterable[Axes], curves: Sequence[Curve]) -> str:
    """Give all panels one scale, so that rows can be compared; return the power of ten that its labels leave out."""
    numbers = [number for curve in curves for number in (*curve.low, *curve.high)]
    if spans_decades(curves):
        positive = [number for number in numbers if number > 0]
        for each in axes:
            each.set_yscale("log", nonpositive="mask")
            each.set_ylim(min(positive) / 1.3, max(positive) * 1.3)
        return ""
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    exponent = math.floor(math.log10(max(-low, high))) if high > low else 0
    unit = 10.0**exponent if exponent not in _PLAIN else 1.0
    for each in axes:
        each.set_ylim(low, high + (0.05 * (high - low) or 1.0))
        each.yaxis.set_major_locator(MaxNLocator(4))
        each.yaxis.set_major_formatter(lambda value, _place: f"{value / unit:.3g}")
    return "" if unit == 1 else f" ($10^{{{exponent}}}$)"


@look()
def draw(data: Energy) -> Figure:
    """Draw one panel per row: energies on the left axis, the training loss on the right one."""
    rows = [(panel.row, panel.proposed) for panel in data.panels]
    key = {
        f"energy of {name}": Line2D([], [], color=mark(place).colour, linestyle=mark(place).line)
        for place, name in enumerate(data.modalities)
    }
    key["training loss"] = Line2D([], [], color=_LOSS, linestyle=":")
    page = panels(rows, 0.8, Frame(left=0.6, right=0.5, across=0.12), data.notes, list(key))
    epochs = max(len(panel.loss.mean) for panel in data.panels)
    twins = [axes.twinx() for axes in page.panels]
    for place, (axes, twin, panel) in enumerate(zip(page.panels, twins, data.panels, strict=True)):
        for number, curve in enumerate(panel.energy.values()):
            if any(curve.mean):
                _plot(axes, curve, color=mark(number).colour, linestyle=mark(number).line)
        _plot(twin, panel.loss, color=_LOSS, linestyle=":")
        axes.set_xlim(0.5, epochs + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.tick_params(labelbottom=page.lowest(place), labelleft=page.leftmost(place))
        twin.tick_params(labelright=page.rightmost(place))
        twin.spines["right"].set_visible(True)
    energies = _scale(page.panels, [curve for panel in data.panels for curve in panel.energy.values()])
    losses = _scale(twins, [panel.loss for panel in data.panels])
    page.name("epoch", f"cumulative gradient energy{energies}", f"training loss{losses}")
    page.key(key)
    return page.figure
