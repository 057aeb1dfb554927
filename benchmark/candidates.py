"""A row that is tuned in a column group: what was tried for it, what comes next, what it chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from benchmark.proposals import Field, Space, Trial, best, propose
from benchmark.protocol import Cell, Column, Experiment, Row, Selection, Setting, Tuning, place_name
from benchmark.scores import Record, select_epoch
from benchmark.store import Store

FIRST_SEED = 1000
"""Of the trials; tables use the seeds from 0 on."""

Document = dict[str, Any]
"""A row's entry in the result file."""


@dataclass
class Candidate:
    """A row in a column group of the untuned experiment and before one target domain, with what was tried for it.

    A target is tuned for itself, on the other domains: what those say of another target would let its data speak.
    """

    experiment: Experiment
    tuning: Tuning
    column: Column
    row: Row
    target: str | None = None
    trials: list[Trial] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """The method's options, defaults included, in the untuned trial."""
    provenance: list[Any] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Name of the column group and target."""
        return place_name(self.column, self.target)

    def cells(self, setting: Setting) -> list[Cell]:
        """Return a trial's training runs."""
        numbers = seeds(self.experiment, self.tuning)
        return [self.experiment.cell(self.row, self.column, seed, setting, self.target) for seed in numbers]

    def space(self) -> Space:
        """Return what the row may vary, with the untuned values as far as they are known."""
        protocol, options = self.tuning.search.space(self.row)
        choices: dict[Field, Sequence[Any]] = {("protocol", name): values for name, values in protocol.items()}
        choices |= {("options", name): values for name, values in options.items()}
        untuned: dict[Field, Any] = {
            ("protocol", name): reduce(getattr, name.split("."), self.experiment.protocol) for name in protocol
        }
        untuned |= {("options", name): self.options[name] for name in options if name in self.options}
        return Space(choices, untuned)

    def ask(self) -> Setting | None:
        """Return the next trial's setting, None when the row has had every combination."""
        return propose(self.space(), self.trials, (self.experiment.name, self.place, self.row.label))

    def tell(self, setting: Setting, store: Store, reasons: Mapping[str, str]) -> None:
        """Add a trial whose cells are finished or have failed, for `reasons` by key."""
        cells = self.cells(setting)
        keys = tuple(store.key(cell) for cell in cells)
        records = store.records(cells)
        if not self.trials and records:
            self.options = records[0]["options"]
        for record in records:
            source = {name: value for name, value in record["provenance"].items() if name != "finished"}
            if source not in self.provenance:
                self.provenance.append(source)
        failed = [f"seed {c.seed}: {reasons[key]}" for c, key in zip(cells, keys, strict=True) if key in reasons]
        scores = () if failed else tuple(validation_score(record, self.experiment.selection) for record in records)
        self.trials.append(Trial(setting, scores, "; ".join(failed), keys))

    def chosen(self) -> Trial | None:
        """Return the best trial once the row has had its budget or every combination."""
        whole = len(self.trials) >= self.tuning.trials or next(self.space().untried(self.trials), None) is None
        return best(self.trials) if whole else None

    def document(self) -> Document:
        """Return the row's entry in the result file."""
        chosen = self.chosen()
        return {
            "sources": self.cells(Setting())[0].sources(),
            "provenance": self.provenance,
            "trials": [
                {
                    **trial.setting.model_dump(mode="json"),
                    "state": "failed" if trial.reason else "finished",
                    "reason": trial.reason,
                    "score": None if trial.reason else trial.score,
                    "scores": list(trial.scores),
                    "cells": list(trial.cells),
                }
                for trial in self.trials
            ],
            "chosen": chosen.setting.model_dump(mode="json") if chosen else None,
        }

    def settled(self, entry: Document | None, store: Store) -> bool:
        """Return whether the entry holds the choice for the row as it is now: same configuration, same sources."""
        if not entry or entry["chosen"] is None:
            return False
        return bool(entry["trials"][0]["cells"] == [store.key(cell) for cell in self.cells(Setting())])


def seeds(experiment: Experiment, tuning: Tuning) -> range:
    """Return the seeds of every trial, none of which the table uses."""
    first = max(FIRST_SEED, experiment.seeds)
    return range(first, first + tuning.seeds)


def validation_score(record: Record, rule: Selection) -> float:
    """Return a run's validation accuracy in % at the epoch that the rule selects on validation data."""
    epoch = select_epoch(record["epochs"], "best_val" if rule == "best_test" else rule)
    return 100 * float(epoch["val"]["accuracy"])
