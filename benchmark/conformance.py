"""`equipoise check`: does a method keep the contract, and does it do anything at all?

Every check is a function that returns its outcome and the reason; together they are structured records that the tests,
the command line and an author of a new method read alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from tabulate import tabulate
from torch import Tensor

from benchmark import seeding
from benchmark.conformance_cost import cost_as_declared
from benchmark.conformance_task import BATCH, EPOCHS, Encoder, Widths, check_parts, check_protocol
from benchmark.conformance_trial import SEED, Check, Cost, Finding, Outcome, Trial, not_finite, verdict
from benchmark.context import Context, begin
from benchmark.errors import EquipoiseError
from benchmark.method import Method, Passes, Plan
from benchmark.model import parameter_group
from benchmark.registry import DATASETS, FUSIONS, METHODS
from benchmark.training import Fit, initialised

SEEDS = 4
PASS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Record:
    """One check of one method or dataset; the cost where the check measures one."""

    subject: str
    check: str
    outcome: Outcome
    reason: str = ""
    cost: Cost | None = None


class _InterruptedError(Exception):
    """Stands for the process being killed between two epochs."""


def _difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    return [name for name in sorted(a.keys() & b.keys()) if not torch.equal(a[name], b[name])]


def _weights(run: Fit) -> dict[str, Tensor]:
    return run.model.state_dict()


def finite_losses(trial: Trial) -> Finding:
    """Losses stay finite over a run."""
    return verdict(not_finite(trial.fit()))


def declared_parameters_move(trial: Trial) -> Finding:
    """Every parameter in `parameters(model)` moves, and no other."""
    method = trial.build()
    before = initialised(method, SEED)
    declared = set(method.parameters(before))
    after = dict(trial.fit().model.named_parameters())
    moved = {name for name, value in before.named_parameters() if not torch.equal(value, after[name])}
    problems = [f"{name} is declared but does not move" for name in sorted(declared - moved)]
    problems += [f"{name} moves but is not declared" for name in sorted(moved - declared)]
    return verdict("; ".join(problems[:3]))


class _Spy(Context):
    """Keeps the gradients that the first optimiser step of a run sees."""

    seen: dict[str, Tensor] | None = None

    def update(self, loss: Tensor) -> None:
        if self.seen is None:
            parameters = self.model.named_parameters()
            self.seen = {name: value.grad.clone() for name, value in parameters if value.grad is not None}
        super().update(loss)


def _first_gradients(trial: Trial) -> dict[str, Tensor]:
    method = trial.build()
    parts = check_parts(trial.modalities)
    model = initialised(method, SEED).train()
    spy = begin(method, model, check_protocol(), SEED, parts["train"], parts["val"], kind=_Spy)
    with seeding.isolated():
        spy.enter(method, 0)
        method.step(next(iter(method.batches(spy))), spy)
    return spy.seen or {}


def gradients_touched_where_declared(trial: Trial) -> Finding:
    """From one state and batch, groups outside `info.changes` receive joint training's gradients bit for bit."""
    own, joint = _first_gradients(trial), _first_gradients(trial.joint())
    allowed = trial.method.info.changes
    missing = [name for name in joint.keys() - own.keys() if parameter_group(name) not in allowed]
    other = [name for name in _difference(own, joint) if parameter_group(name) not in allowed]
    return verdict(
        f"{', '.join(sorted([*other, *missing])[:3])}: gradient differs, but changes = {sorted(allowed)}"
        if other or missing
        else ""
    )


def resumes_bit_for_bit(trial: Trial) -> Finding:
    """Killed after any third of the run and resumed from its checkpoint, it ends with the same weights and metrics."""
    whole = trial.fit()
    problems = []
    for stop in (EPOCHS // 3, 2 * EPOCHS // 3):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint.ckpt"

            def interrupt(record: dict[str, Any], stop: int = stop) -> None:
                if record["epoch"] == stop:
                    raise _InterruptedError

            try:
                trial.fit(checkpoint=file, checkpoint_seconds=0.0, on_epoch=interrupt)
            except _InterruptedError:
                resumed = trial.fit(checkpoint=file)
        if (resumed.epochs, resumed.final) != (whole.epochs, whole.final):
            problems.append(f"metrics differ after resuming in epoch {stop}")
        changed = _difference(_weights(whole), _weights(resumed))
        if changed:
            problems.append(f"{changed[0]} differs after resuming in epoch {stop}")
    return verdict("; ".join(problems))


def deterministic(trial: Trial) -> Finding:
    """Two runs of one seed are bit-identical."""
    first, second = trial.fit(), trial.fit()
    changed = _difference(_weights(first), _weights(second))
    return verdict(f"{changed[0]} differs between two runs" if changed or first.epochs != second.epochs else "")


def _variation(**changes: Any) -> Check:
    """Run on a task of another kind: finite, or refused with a reason."""

    def check(trial: Trial) -> Finding:
        varied = replace(trial, **changes)
        try:
            varied.build()
        except EquipoiseError as error:
            return Finding(Outcome.REFUSED, str(error))
        return verdict(not_finite(varied.fit()))

    return check


def last_batch_of_one(trial: Trial) -> Finding:
    """An epoch whose last batch holds one sample is trained like any other."""
    return verdict(not_finite(trial.fit(train=2 * BATCH + 1)))


def dead_modality(trial: Trial) -> Finding:
    """A modality whose input is all zeros breaks nothing."""
    return verdict(not_finite(trial.fit(dead=trial.task().modalities[-1])))


def noop_equals_joint(trial: Trial) -> Finding:
    """Under its no-op options the method is joint training, bit for bit."""
    if trial.method.noop is None:
        return Finding(Outcome.NOT_APPLICABLE, "has no setting that switches it off")
    own = _weights(replace(trial, options=trial.method.noop).fit())
    joint = _weights(trial.joint().fit())
    changed = _difference(own, joint)
    return verdict(f"{changed[0]} differs from joint training under {dict(trial.method.noop)}" if changed else "")


def distinguishable(trial: Trial) -> Finding:
    """From the same state and batches it changes at least one update against joint training.

    A method may act only where gradients conflict, which not every initialisation shows: any of a few seeds will do.
    """
    if trial.method is trial.joint().method:
        return Finding(Outcome.NOT_APPLICABLE, "is joint training")
    differs = any(
        _difference(_weights(trial.fit(seed=seed)), _weights(trial.joint().fit(seed=seed))) for seed in range(SEEDS)
    )
    return verdict("" if differs else f"{EPOCHS} epochs of {SEEDS} seeds give exactly the weights of joint training")


def passes_as_declared(trial: Trial) -> Finding:
    """Encoder passes counted in a run equal those that `expected_passes` predicts."""
    method = trial.build()
    parts = check_parts(trial.modalities)
    plan = Plan(EPOCHS, len(parts["train"]), len(parts["val"]), method.task.modalities, BATCH)
    expected, counted = method.expected_passes(plan), trial.fit().passes
    text = f"counted {_passes(counted)}, declared {_passes(expected)}"
    pairs = [(expected.forward, counted.forward), (expected.backward, counted.backward)]
    wrong = any(abs(want - got) > PASS_TOLERANCE * max(want, got) for want, got in pairs)
    return Finding(Outcome.FAILED if wrong else Outcome.PASSED, text)


def _passes(passes: Passes) -> str:
    return f"{passes.forward:.2f} forward + {passes.backward:.2f} backward = {passes.relative:.2f}x joint"


CHECKS: dict[str, Check] = {
    "finite": finite_losses,
    "moves": declared_parameters_move,
    "touches": gradients_touched_where_declared,
    "resumes": resumes_bit_for_bit,
    "deterministic": deterministic,
    "one modality": _variation(modalities=1),
    "two modalities": _variation(modalities=2),
    "three modalities": _variation(modalities=3),
    "unequal widths": _variation(widths=Widths.UNEQUAL),
    **{f"fusion {name}": _variation(fusion=name) for name in FUSIONS.names()},
    "transformer": _variation(encoder=Encoder.TRANSFORMER),
    "last batch of one": last_batch_of_one,
    "dead modality": dead_modality,
    "no-op": noop_equals_joint,
    "distinguishable": distinguishable,
    "passes": passes_as_declared,
    "cost": cost_as_declared,
}


def check_method(
    method: type[Method],
    name: str,
    options: Mapping[str, Any] | None = None,
    checks: Mapping[str, Check] = CHECKS,
) -> Iterator[Record]:
    """Yield the record of every check of one method."""
    trial = Trial(method, options or {})
    for check, function in checks.items():
        try:
            finding = function(trial)
        except Exception as error:  # noqa: BLE001 - whatever a method raises is the check's finding
            finding = Finding(Outcome.FAILED, f"{type(error).__name__}: {error}")
        yield Record(name, check, *finding)


def check_registered(names: Sequence[str]) -> Iterator[Record]:
    """Yield the records of registered methods and datasets, of all of them when no name is given."""
    from benchmark.conformance_dataset import check_dataset

    for name in names or [*METHODS.names(), *DATASETS.names()]:
        yield from check_dataset(name) if name in DATASETS.names() else check_method(METHODS.load(name), name)


def cost_table(records: Iterable[Record]) -> str:
    """Return declared passes and declared and measured cost of every method whose cost was measured; may be empty."""
    rows = [
        (r.subject, r.cost.declared.forward, r.cost.declared.backward, r.cost.declared.relative, r.cost.measured)
        for r in records
        if r.cost is not None
    ]
    headers = ("method", "forward", "backward", "declared", "measured")
    return tabulate(rows, headers, "simple", floatfmt=".2f") if rows else ""


def run(names: Sequence[str]) -> int:
    """Print the records of the named methods and datasets (none: all); return 1 if a check failed, else 0."""
    torch.set_num_threads(1)
    records = []
    for record in check_registered(names):
        records.append(record)
        click.echo(f"{record.subject:22} {record.check:24} {record.outcome:15} {record.reason}".rstrip())
    costs = cost_table(records)
    if costs:
        click.echo(f"\nEncoder passes, and cost per step in multiples of joint training:\n\n{costs}\n")
    outcomes = [record.outcome for record in records]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in Outcome)
    click.echo(f"{len(outcomes)} checks: {counts}")
    return int(Outcome.FAILED in outcomes)
