"""What became of a source: what is complete now, and the one sentence for all that is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmark.dataset import Source, Verification
from benchmark.errors import DataError

MIRROR_VARIABLE = "EQUIPOISE_MIRROR"
SHOWN = 3


class IncompleteError(DataError):
    """Some files could not be had; `found` says what is there of every source."""

    def __init__(self, message: str, found: Sequence[Verification]) -> None:
        super().__init__(message)
        self.found = list(found)


@dataclass
class Outcome:
    """A source under way: `checked` at first, what was brought since, and what each way answered that brought nothing.

    `problems` are those of the source as one file, `refused` those of single files by path.
    """

    source: Source
    checked: Verification
    brought: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unknown: int = 0

    @property
    def found(self) -> Verification:
        """What is there now."""
        return replace(
            self.checked,
            missing=tuple(path for path in self.checked.missing if path not in self.brought),
            broken={path: fault for path, fault in self.checked.broken.items() if path not in self.brought},
            unknown=self.checked.unknown + self.unknown,
        )

    def reasons(self) -> str:
        """Return why it is not complete: the first few reasons, and how many there are more."""
        found = self.found
        single = [self.refused[path] for path in sorted(self.refused)]
        if not (single or self.problems):
            single = [f"{path} is missing" for path in found.missing]
        # The last one as well: thousands may share the first reason with none of the first few.
        more = [f"{len(single) - SHOWN} more, the last {single[-1]}"] if len(single) > SHOWN else []
        counts = [str(found)] if len(single) > 1 else []
        return "; ".join([*self.problems, *counts, *single[:SHOWN], *more])


def incomplete(owner: str, outcomes: Sequence[Outcome], destination: Path) -> IncompleteError | None:
    """Return the one error that names what is missing of all sources and what to do, or None when nothing is."""
    failed = [outcome for outcome in outcomes if not outcome.found.complete]
    if not failed:
        return None
    closed = [outcome for outcome in failed if not outcome.source.obtain]
    by_hand = [outcome for outcome in failed if outcome.source.obtain]
    steps = [
        f"{outcome.source.file} has to be brought by hand ({outcome.reasons()}). {outcome.source.obtain} Put it into "
        f"{destination}"
        for outcome in by_hand
    ]
    if closed:
        each = [f"{outcome.source.file} could not be fetched ({outcome.reasons()})" for outcome in closed[:SHOWN]]
        more = [f"{len(closed) - SHOWN} more sources"] if len(closed) > SHOWN else []
        it, file = ("it", closed[0].source.file) if len(closed) == 1 else ("them", "<file>")
        place = f"into {destination} or, as {owner}/{file}, into the folder named by {MIRROR_VARIABLE}"
        steps.insert(0, f"{'; '.join(each + more)}. Check the connection, or put {it} {place}{'' if by_hand else ','}")
    again = f"run `equipoise fetch {owner}` again; finished files are kept."
    return IncompleteError(f"{owner}: {'. '.join(steps)} and {again}", [outcome.found for outcome in outcomes])
