"""What the tuning of one row tries next: a pure function of its search space and the scores so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import optuna

from benchmark.protocol import Setting, canonical, digest

Field = tuple[Literal["protocol", "options"], str]
"""A protocol field or an option of the method, by name."""

RANDOM_TRIALS = 5
"""Trials before the scores guide the rest: half of what Optuna takes, because budgets are small."""

DRAWS = 20
"""How often a combination that was tried is drawn again before the first untried one is taken."""


@dataclass(frozen=True)
class Trial:
    """A setting with its validation accuracy in % by seed, or the reason why it has none."""

    setting: Setting
    scores: tuple[float, ...] = ()
    reason: str = ""
    cells: tuple[str, ...] = ()
    """Keys of its cells, in the order of the seeds."""

    @property
    def score(self) -> float:
        """Mean over the seeds; -inf for a trial that failed."""
        return -math.inf if self.reason else math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Space:
    """The values to choose from, and the values that count where a setting gives none."""

    choices: Mapping[Field, Sequence[Any]]
    untuned: Mapping[Field, Any]

    def values(self, setting: Setting) -> tuple[str, ...]:
        """Return the text of the value that each field has under the setting: equal texts, equal training."""
        given: dict[Field, Any] = dict(self.untuned)
        given |= {("protocol", name): value for name, value in setting.protocol.items()}
        given |= {("options", name): value for name, value in setting.options.items()}
        return tuple(canonical(given[field]) if field in given else "default" for field in self.choices)

    def setting(self, values: Sequence[Any]) -> Setting:
        """Return the setting that gives every field a value."""
        given = dict(zip(self.choices, values, strict=True))
        return Setting(
            options={name: value for (part, name), value in given.items() if part == "options"},
            protocol={name: value for (part, name), value in given.items() if part == "protocol"},
        )

    def untried(self, trials: Sequence[Trial]) -> Iterator[Setting]:
        """Yield the combinations that no trial had."""
        known = {self.values(trial.setting) for trial in trials}
        settings = map(self.setting, product(*self.choices.values()))
        yield from (setting for setting in settings if self.values(setting) not in known)


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest score (ties: the earliest), None when all failed."""
    return max((trial for trial in trials if not trial.reason), key=lambda trial: trial.score, default=None)


def propose(space: Space, trials: Sequence[Trial], row: Sequence[str]) -> Setting | None:
    """Return the setting to try after `trials`: first the untuned one, then untried ones; None when none is left.

    `row` names experiment, column group and row: its digest seeds the draws.
    """
    if not trials:
        return Setting()
    fallback = next(space.untried(trials), None)
    if fallback is None:
        return None
    known = {space.values(trial.setting) for trial in trials}
    study, distributions = _study(space, trials, int(digest([*row, len(trials)])[:8], 16))
    for _ in range(DRAWS):
        drawn = study.ask(distributions).params
        setting = space.setting([values[drawn[str(field)]] for field, values in space.choices.items()])
        if space.values(setting) not in known:
            return setting
    return fallback


def _study(
    space: Space, trials: Sequence[Trial], seed: int
) -> tuple[optuna.Study, dict[str, optuna.distributions.BaseDistribution]]:
    """Return a study that knows the trials inside the space; values are drawn by their place in the list.

    TPE, because budgets are smaller than most spaces, and it spends the later trials near what has scored well.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    texts = {field: [canonical(value) for value in values] for field, values in space.choices.items()}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        str(field): optuna.distributions.CategoricalDistribution(tuple(range(len(found))))
        for field, found in texts.items()
    }
    sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        values = dict(zip(texts, space.values(trial.setting), strict=True))
        if all(values[field] in found for field, found in texts.items()):
            places = {str(field): found.index(values[field]) for field, found in texts.items()}
            study.add_trial(optuna.trial.create_trial(params=places, distributions=distributions, value=trial.score))
    return study, distributions
