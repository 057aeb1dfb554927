"""What a check is given, a method class on a synthetic task, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from benchmark.conformance_task import SOURCES, TRAIN, Encoder, Widths, check_parts, check_protocol, check_task
from benchmark.errors import EquipoiseError
from benchmark.method import REFERENCE, Method, Passes
from benchmark.protocol import validated
from benchmark.registry import FUSIONS, METHODS
from benchmark.task import Task
from benchmark.training import Fit, fit

SEED = 0


class Outcome(StrEnum):
    """What a check found."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Cost:
    """Declared encoder passes, and the measured cost of a step in multiples of joint training's."""

    declared: Passes
    measured: float

    @property
    def deviation(self) -> float:
        """Measured over declared relative cost, minus 1."""
        return self.measured / self.declared.relative - 1

    def __str__(self) -> str:
        return f"{self.measured:.2f}x joint per step, declared {self.declared.relative:.2f}x"


class Finding(NamedTuple):
    """Outcome of a check and the reason; the cost where it measures one."""

    outcome: Outcome
    reason: str = ""
    cost: Cost | None = None


@dataclass(frozen=True)
class Trial:
    """A method class under check, with the options and the synthetic task it is tried on."""

    method: type[Method]
    options: Mapping[str, Any]
    widths: Widths = Widths.EQUAL
    modalities: int = 2
    fusion: str = "concat"
    encoder: Encoder = Encoder.CONVOLUTION

    def task(self) -> Task:
        """Return the synthetic task."""
        return check_task(self.modalities, self.widths, FUSIONS.load(self.fusion), self.encoder)

    def build(self, task: Task | None = None) -> Method:
        """Build the method for its own or another task; raises EquipoiseError where it refuses."""
        task = replace(task or self.task(), domains=SOURCES[: self.method.info.min_domains])
        options = {**self.method.sample_options(task), **self.options}
        chosen = validated(self.method.Options, options, f"Options of {self.method.__name__}")
        reason = self.method.refuses(chosen, task)
        if reason:
            raise EquipoiseError(reason)
        return self.method(chosen, task)

    def fit(self, train: int = TRAIN, dead: str | None = None, seed: int = SEED, **arguments: Any) -> Fit:
        """Run the synthetic task to its end."""
        return fit(self.build(), check_parts(self.modalities, train, dead), check_protocol(), seed, **arguments)

    def joint(self) -> Trial:
        """The same trial of joint training."""
        return replace(self, method=METHODS.load(REFERENCE), options={})


Check = Callable[[Trial], Finding]


def verdict(problem: str) -> Finding:
    """Return a failure with its reason, or success where there is no problem."""
    return Finding(Outcome.FAILED, problem) if problem else Finding(Outcome.PASSED)


def not_finite(run: Fit) -> str:
    """Return the first epoch with a loss that is not finite, as text; empty when there is none."""
    numbers = [(e["epoch"], e["loss"], e["val"]["loss"], e["test"]["loss"]) for e in run.epochs]
    bad = [row for row in numbers if not all(math.isfinite(value) for value in row)]
    return f"epoch, training, validation and test loss {bad[0]}" if bad else ""
