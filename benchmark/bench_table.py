"""The table of step costs of one device, `results/bench/<device>.md`, and the records it is made of, beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from tabulate import tabulate

from benchmark.paths import results_home
from benchmark.rendering import MARKDOWN
from benchmark.run import device_name, provenance
from benchmark.store import write_atomically
from benchmark.training import cpu_or_cuda

MEBIBYTE = 2**20
HEADERS = (
    "method",
    "x yardstick",
    "declared",
    "excess",
    "x bare loop",
    "forward",
    "backward",
    "peak memory",
    "parameters",
    "ms per step",
)


@dataclass(frozen=True)
class StepCost:
    """What a method's step costs with one backbone.

    `ratio` is the median ratio of seconds to the yardstick's, `limit` the largest accepted one, `declared` what the
    declared passes predict; `forward` and `backward` are counted passes per training sample and epoch. The peak is that
    of a run without its data, `peak_ratio` its ratio to the yardstick's.
    """

    backbone: str
    method: str
    yardstick: str
    ratio: float
    to_bare: float
    limit: float | None
    declared: float
    forward: float
    backward: float
    peak_bytes: int
    peak_ratio: float
    parameters: int
    milliseconds: float
    rounds: int

    @property
    def over(self) -> bool:
        """True when the ratio exceeds its limit."""
        return self.limit is not None and self.ratio > self.limit

    @property
    def excess(self) -> float:
        """What the step costs beyond its declared passes, as a fraction of them."""
        return self.ratio / self.declared - 1

    def relative_to(self, yardstick: StepCost) -> StepCost:
        """Return this cost, whose ratio to a bare loop is its ratio to the yardstick times the yardstick's own."""
        return replace(self, to_bare=self.ratio * yardstick.to_bare)

    def __str__(self) -> str:
        text = f"{self.method:24} {self.ratio:5.2f}x {self.yardstick} ({self.backbone}), declared {self.declared:.2f}x"
        return text if self.limit is None else f"{text}, limit {self.limit:.2f}x"


@dataclass(frozen=True)
class Measured:
    """A step cost and what measured it: commit, versions, time."""

    cost: StepCost
    provenance: dict[str, Any]


class BenchTable:
    """The step costs of one device; a row that is measured again replaces the old one, the others stay."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device = device
        self.path = folder / f"{re.sub('[^a-z0-9]+', '-', device.lower())}.md"
        self.records = self.path.with_suffix(".json")
        self.rows: list[Measured] = []
        if self.records.exists():
            stored = json.loads(self.records.read_text())["rows"]
            self.rows = [Measured(StepCost(**row["cost"]), row["provenance"]) for row in stored]

    @classmethod
    def here(cls) -> Self:
        """Return the table of the device that trains on this machine."""
        return cls(device_name(cpu_or_cuda("32-true")), results_home() / "bench")

    def add(self, cost: StepCost) -> None:
        """Replace the row of the cost's backbone and method, and write table and records."""

        def place(row: Measured) -> tuple[str, str]:
            return row.cost.backbone, row.cost.method

        new = Measured(cost, provenance())
        self.rows = sorted([row for row in self.rows if place(row) != place(new)] + [new], key=place)
        content = {"device": self.device, "rows": [asdict(row) for row in self.rows]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.records, json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_atomically(self.path, self.markdown())

    def markdown(self) -> str:
        """Return the table, one section per backbone."""
        backbones = dict.fromkeys(row.cost.backbone for row in self.rows)
        sections = [
            line
            for backbone in backbones
            for line in (f"## {backbone}", "", _grid([r.cost for r in self.rows if r.cost.backbone == backbone]), "")
        ]
        notes = [f"- {MARKDOWN.text(line)}" for line in self._notes()]
        return "\n".join(
            [f"# Step costs on {self.device}", "", *sections, *notes, "- Regenerate: `equipoise bench`", ""]
        )

    def _notes(self) -> Iterator[str]:
        yield (
            "x yardstick: median ratio of training seconds, subject and yardstick in turns in one process; CPU time "
            "of the process with one thread, on a GPU time on the wall. Yardstick: joint training; for methods that "
            "need several domains, adversarial training (base); for these two, joint training in a bare PyTorch loop. "
            "x bare loop: the method's ratio times its yardstick's."
        )
        yield (
            "Declared: relative cost of the declared encoder passes of such a run, a backward pass counting as two "
            "forward passes. Excess: what was measured beyond it; bold where it is over its limit. With small encoders "
            "heads, optimiser and the method's own mathematics weigh as much as the passes, and there is no limit."
        )
        yield "Forward, backward: counted passes through the encoders per training sample and epoch."
        memory = (
            "allocated on the device" if self.device.startswith("cuda") else "tensors alive at once, without workspaces"
        )
        yield f"Peak memory of a run beyond its data: {memory}; in brackets the ratio to the yardstick's."
        yield "Parameters: those that the method trains."
        for text, names in _origins(self.rows).items():
            yield f"{text}: {'all rows' if len(names) == len(self.rows) else ', '.join(names)}."


def _origins(rows: Sequence[Measured]) -> dict[str, list[str]]:
    """Return the rows that were measured by the same code in the same number of rounds, by what these are."""
    found: dict[str, list[str]] = {}
    for row in rows:
        origin = row.provenance
        versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
        commit = f"{origin['commit'] or 'unknown'}{' (changed)' if origin['dirty'] else ''}"
        text = f"Commit {commit}; {versions}; {row.cost.rounds} rounds"
        found.setdefault(text, []).append(f"{row.cost.method} ({row.cost.backbone})")
    return found


def _grid(costs: Sequence[StepCost]) -> str:
    return tabulate([_line(cost) for cost in costs], HEADERS, MARKDOWN.tablefmt, disable_numparse=True)


def _line(cost: StepCost) -> list[str]:
    excess = f"{cost.excess:+.0%}"
    return [
        cost.method,
        f"{cost.ratio:.2f} {cost.yardstick}",
        f"{cost.declared:.2f}",
        MARKDOWN.bold.format(excess) if cost.over else excess,
        f"{cost.to_bare:.2f}",
        f"{cost.forward:.2f}",
        f"{cost.backward:.2f}",
        f"{cost.peak_bytes / MEBIBYTE:.1f} MiB ({cost.peak_ratio:.2f})",
        f"{cost.parameters:,}",
        f"{cost.milliseconds:.1f}",
    ]
