"""`structure`: a map of the fused features of test samples, by class and by domain (t-SNE; GMP, Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmark.figures.group import Finished, Group, NothingToDraw, sentence
from benchmark.figures.sheet import Frame, look, mark, panels
from benchmark.protocol import Selection
from benchmark.scores import Record, reading

PERPLEXITY = 30.0
"""Neighbours that t-SNE keeps near each other, about; fewer where there are few samples."""

DECIMALS = 3
_SHAPES = ("o", "^", "s", "X", "v", "P", "D", "*")
_COLOURS, _LIGHTEST = "viridis", 0.85
"""Classes are numbers in these colours, which also differ in grey; lighter ones would not show on paper."""

Place = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One run's samples: places on the map, classes, and domains by their position in `Structure.domains`.

    The silhouettes (-1 to 1) are of the recorded features, not of the map; None where a grouping has one group.
    `variance` is the share of the features' variance that is recorded.
    """

    row: str
    proposed: bool
    seed: int
    target: str | None
    places: tuple[Place, ...]
    classes: tuple[int, ...]
    domains: tuple[str, ...]
    silhouette_class: float | None
    silhouette_domain: float | None
    variance: float


@dataclass(frozen=True)
class Structure:
    """What the figure shows; the target domain is the last one."""

    domains: tuple[str, ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]


def embedded(values: Sequence[Sequence[float]]) -> tuple[Place, ...]:
    """Return places `(n, 2)` of features `(n, k)` by t-SNE, the same every time."""
    import numpy as np
    from sklearn.manifold import TSNE

    # The exact method: the faster one sums in an order that depends on the number of threads.
    found = TSNE(
        init="pca", perplexity=min(PERPLEXITY, (len(values) - 1) / 3), method="exact", random_state=0
    ).fit_transform(np.asarray(values, dtype=np.float64))
    return tuple((round(float(x), DECIMALS), round(float(y), DECIMALS)) for x, y in found)


def silhouette(values: Sequence[Sequence[float]], groups: Sequence[Any]) -> float | None:
    """Return the mean silhouette of features `(n, k)`, None unless there are 2 to n - 1 groups."""
    from sklearn.metrics import silhouette_score

    if not 2 <= len(set(groups)) < len(groups):
        return None
    return round(float(silhouette_score(values, groups)), DECIMALS)


def _recorded(finished: Finished, rule: Selection) -> tuple[int, Record] | None:
    """Return the first seed that has features, and of it the record of the first target; None without any."""
    for seed, records in finished.seeds.items():
        for record in records:
            if "features" in record.get("final", {}).get(rule, {}):
                return seed, record
    return None


def _panel(finished: Finished, seed: int, record: Record, rule: Selection) -> Panel:
    with reading(record, "features"):
        target, found = record["cell"].get("target"), record["final"][rule]["features"]
        own = "test part" if target is None else f"{target} (target)"
        domains = tuple(own if place is None else str(found["sources"][place]) for place in found["domains"])
        return Panel(
            row=finished.row.label,
            proposed=finished.row.proposed,
            seed=seed,
            target=target,
            places=embedded(found["values"]),
            classes=tuple(found["labels"]),
            domains=domains,
            silhouette_class=silhouette(found["values"], found["labels"]),
            silhouette_domain=silhouette(found["values"], domains),
            variance=float(found["variance"]),
        )


def structure(group: Group) -> Structure:
    """Return the map of every row that has recorded features.

    Raises NothingToDraw where none has, DataError for a record with features that cannot be read.
    """
    rule = group.selection
    chosen = [(finished, _recorded(finished, rule)) for finished in group.rows]
    found = tuple(_panel(finished, *run, rule) for finished, run in chosen if run is not None)
    if not found:
        raise NothingToDraw(
            f"No finished cell of experiment {group.experiment.name!r} has recorded features. Give its protocol "
            "`features`, the number of test samples per domain, and train it."
        )
    names = dict.fromkeys(name for panel in found for name in panel.domains)
    own = [name for name in names if name in {panel.domains[-1] for panel in found}]
    runs = dict.fromkeys(
        f"seed {panel.seed}" + (f", target {panel.target}" if panel.target is not None else "") for panel in found
    )
    least = 100 * min(panel.variance for panel in found)
    notes = (
        *group.notes(
            f"t-SNE of fused features of test samples ({'; '.join(runs)}); weights of the epoch selected by {rule}. "
            "Left: numbers are classes in the order of the dataset. Silhouettes (-1 to 1) are of the recorded "
            f"components, which hold at least {least:.0f} % of the variance, not of the map."
        ),
        *sentence("No features recorded, left out", [each.row.label for each, run in chosen if run is None]),
    )
    return Structure((*(name for name in names if name not in own), *own), found, notes)


def _scatter(axes: Axes, panel: Panel, groups: Sequence[Any], looks: Callable[[Any], dict[str, Any]]) -> None:
    for name in dict.fromkeys(sorted(groups) if isinstance(groups[0], int) else groups):
        places = [place for place, own in zip(panel.places, groups, strict=True) if own == name]
        axes.scatter(*zip(*places, strict=True), linewidths=0, **looks(name))
    axes.margins(0.05)
    axes.set(xticks=(), yticks=())
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def _title(panel: Panel, what: str, found: float | None) -> tuple[str, bool]:
    return f"{panel.row}: {what}, silhouette\u00a0{'undefined' if found is None else f'{found:.2f}'}", panel.proposed


@look()
def draw(data: Structure) -> Figure:
    """Draw two panels per row side by side: the same map by class and by domain."""
    classes = 1 + max(number for panel in data.panels for number in panel.classes)
    ramp = colormaps[_COLOURS]

    def of_class(number: int) -> dict[str, Any]:
        colour = ramp(_LIGHTEST * number / max(classes - 1, 1))
        return {"marker": f"${number}$", "color": [colour], "s": 11}

    def of_domain(name: str) -> dict[str, Any]:
        place = data.domains.index(name)
        return {"marker": _SHAPES[place % len(_SHAPES)], "color": mark(place).colour, "s": 8, "alpha": 0.8}

    titles = [
        title
        for panel in data.panels
        for title in (
            _title(panel, "classes", panel.silhouette_class),
            _title(panel, "domains", panel.silhouette_domain),
        )
    ]
    key = {}
    for name in data.domains:
        looks = of_domain(name)
        key[name] = Line2D([], [], linestyle="", marker=looks["marker"], color=looks["color"], markersize=4)
    frame = Frame(left=0.08, right=0.08, bottom=0.1, across=0.08)
    page = panels(titles, 1.0, frame, data.notes, list(key), columns=min(len(titles), 4))
    for place, panel in enumerate(data.panels):
        by_class, by_domain = page.panels[2 * place : 2 * place + 2]
        _scatter(by_class, panel, panel.classes, of_class)
        _scatter(by_domain, panel, panel.domains, of_domain)
    page.key(key)
    return page.figure
