"""Every registered method keeps the contract; and the checks themselves can fail."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from baselines.joint import Joint
from benchmark.conformance import CHECKS, check_method
from benchmark.conformance_task import Encoder
from benchmark.conformance_trial import Outcome, Trial
from benchmark.context import Context, Forward
from benchmark.data import Batch
from benchmark.method import Method, Passes, Plan
from benchmark.model import MultimodalModel
from benchmark.registry import FUSIONS, METHODS

CONFORMING = {Outcome.PASSED, Outcome.REFUSED, Outcome.NOT_APPLICABLE}
OPTIONAL = {"no-op", "distinguishable"}
"""Checks that may have nothing to apply to."""
TASK_VARIATIONS = {"one modality", "three modalities", "unequal widths", "transformer"}
"""Checks that a method may refuse."""
TIMED = {"cost"}
"""Checks that take a clock, and seconds."""
UNTIMED = {name: check for name, check in CHECKS.items() if name not in TIMED}


@pytest.mark.parametrize("name", METHODS.names())
def test_method_conforms(name: str) -> None:
    records = {record.check: record for record in check_method(METHODS.load(name), name, checks=UNTIMED)}
    assert len(records) == len(CHECKS) - 1 == 19
    assert [f"{r.check}: {r.reason}" for r in records.values() if r.outcome not in CONFORMING] == []
    assert {r.check for r in records.values() if r.outcome is Outcome.NOT_APPLICABLE} <= OPTIONAL
    assert {r.check for r in records.values() if r.outcome is Outcome.REFUSED} <= TASK_VARIATIONS


def test_every_fusion_and_a_transformer_are_tried() -> None:
    assert {name for name in CHECKS if name.startswith("fusion ")} == {f"fusion {name}" for name in FUSIONS.names()}
    kinds = {type(module) for module in Trial(Joint, {}, encoder=Encoder.TRANSFORMER).build().build().modules()}
    assert {nn.MultiheadAttention, nn.LayerNorm} <= kinds


def outcome(method: type[Method], check: str, **options: Any) -> Outcome:
    return CHECKS[check](Trial(method, options))[0]


class Forgetful(Joint):
    """Keeps a counter that it does not save."""

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        self.epochs_seen = 0

    def start_epoch(self, ctx: Context) -> None:
        self.epochs_seen += 1

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        return {"fused": super().losses(forward, batch, ctx)["fused"] * self.epochs_seen}


def test_state_that_is_not_saved_is_found() -> None:
    assert outcome(Forgetful, "resumes") is Outcome.FAILED


class Careless(Joint):
    """Draws from a stream that no seed controls."""

    def modulate_features(
        self, gradients: dict[str, Tensor], forward: Forward, batch: Batch, ctx: Context
    ) -> dict[str, Tensor]:
        free = torch.Generator()
        free.seed()
        return {name: g * torch.rand((), generator=free) for name, g in gradients.items()}


def test_uncontrolled_randomness_is_found() -> None:
    assert outcome(Careless, "deterministic") is Outcome.FAILED


class HeadToucher(Joint):
    """Says that it changes nothing and scales the head's gradient."""

    def modulate_parameters(
        self, gradients: dict[str, dict[str, Tensor]], forward: Forward, batch: Batch, ctx: Context
    ) -> None:
        assert ctx.model.head.weight.grad is not None
        ctx.model.head.weight.grad.mul_(0.5)


def test_an_undeclared_gradient_change_is_found() -> None:
    assert outcome(HeadToucher, "touches") is Outcome.FAILED


def test_a_method_that_does_nothing_is_found() -> None:
    class Idle(Joint):
        noop = None

    assert outcome(Idle, "distinguishable") is Outcome.FAILED


class Lazy(Joint):
    """Declares all parameters and never sends a gradient to the last encoder."""

    def modulate_features(
        self, gradients: dict[str, Tensor], forward: Forward, batch: Batch, ctx: Context
    ) -> dict[str, Tensor]:
        return {name: g for name, g in gradients.items() if name != ctx.task.modalities[-1]}


def test_a_declared_parameter_that_does_not_move_is_found() -> None:
    assert outcome(Lazy, "moves") is Outcome.FAILED


class Meddler(Joint):
    """Moves a parameter it does not declare."""

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        return {name: value for name, value in model.named_parameters() if name != "head.bias"}

    def end_epoch(self, ctx: Context) -> None:
        ctx.model.head.bias.data.add_(1.0)


def test_an_undeclared_parameter_that_moves_is_found() -> None:
    assert outcome(Meddler, "moves") is Outcome.FAILED


class Spendthrift(Joint):
    """Encodes every batch twice and declares one pass."""

    def step(self, batch: Batch, ctx: Context) -> None:
        ctx.forward(batch)
        super().step(batch, ctx)


def test_an_undeclared_pass_is_found() -> None:
    assert outcome(Spendthrift, "passes") is Outcome.FAILED

    class Honest(Spendthrift):
        def expected_passes(self, plan: Plan) -> Passes:
            return Passes(2.0, 1.0)

    assert outcome(Honest, "passes") is Outcome.PASSED


class FalseNoop(Joint):
    """Claims a no-op setting that is none."""

    noop: ClassVar[dict[str, Any]] = {}

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        return {"fused": 2 * super().losses(forward, batch, ctx)["fused"]}


def test_a_false_noop_is_found() -> None:
    assert outcome(FalseNoop, "no-op") is Outcome.FAILED


class Brittle(Joint):
    """Divides by the energy of each modality and by the batch's variance."""

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        scale = min(value.abs().sum() for value in batch.inputs.values()) * forward.logits.std(0).sum()
        return {"fused": super().losses(forward, batch, ctx)["fused"] / scale}


@pytest.mark.parametrize("check", ["dead modality", "last batch of one"])
def test_brittleness_is_found(check: str) -> None:
    record = next(check_method(Brittle, "brittle", checks={check: CHECKS[check]}))
    assert record.outcome is Outcome.FAILED
