"""ReconBoost: alternating boosting and rectification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.reconboost import (
    BoostedModel,
    ReconBoost,
    Reconcilement,
    boosting_loss,
    boosting_weights,
    consolidation_loss,
    phase,
)
from benchmark.context import Context, Run
from benchmark.fusion import FiLM
from benchmark.method import Method, Plan
from benchmark.model import same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import Fit, fit, initialised
from tests.baselines.scenes import PARTS, SHAPES, resumes

LABELS = torch.tensor([0, 1])
ENSEMBLE = torch.tensor([[0.0, 1.0, 0.0], [1.0, 3.0, -1.0]], dtype=torch.float64)


def _logits() -> Tensor:
    return torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)


def _assert_close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), atol=5e-7, rtol=0.0)


def test_worked_weights_are_4788058_and_4133187() -> None:
    weights = boosting_weights(LABELS, ENSEMBLE)
    _assert_close(5.0 - weights, [0.211942, 0.866813])
    _assert_close(weights, [4.788058, 4.133187])


def test_worked_loss_and_gradient() -> None:
    logits = _logits()
    losses = boosting_loss(logits, LABELS, ENSEMBLE)
    _assert_close(losses, [0.271078, 0.759741])
    _assert_close(losses.mean(), 0.515409)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    _assert_close(gradient, [[-0.124653, 0.091129, 0.033524], [0.145999, -0.291998, 0.145999]])


def test_first_stage_has_an_empty_ensemble_and_q_one() -> None:
    _assert_close(boosting_loss(_logits(), LABELS, None), [0.226461, 0.735260])


def test_full_form_at_unit_weights_gives_the_boosting_residual_whatever_the_logits() -> None:
    residual = (ENSEMBLE.softmax(1) - functional.one_hot(LABELS, 3)) / 2
    _assert_close(residual, [[-0.394029, 0.288058, 0.105971], [0.058655, -0.066593, 0.007938]])
    for logits in (_logits(), (3.0 * _logits() - 1.0).detach().requires_grad_()):
        losses = boosting_loss(logits, LABELS, ENSEMBLE, error_weight=1.0, reconcile_weight=1.0, form="full")
        (gradient,) = torch.autograd.grad(losses.mean(), logits)
        torch.testing.assert_close(gradient, residual)


def test_full_form_takes_an_empty_ensemble_as_a_uniform_prediction() -> None:
    logits = _logits()
    losses = boosting_loss(logits, LABELS, None, error_weight=1.0, reconcile_weight=1.0, form="full")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, 1 / 3 - functional.one_hot(LABELS, 3).double())


def test_gradient_is_the_weighted_softmax_error_over_classes_and_batch() -> None:
    logits = _logits()
    (gradient,) = torch.autograd.grad(boosting_loss(logits, LABELS, ENSEMBLE).mean(), logits)
    error = logits.detach().softmax(1) - functional.one_hot(LABELS, 3)
    torch.testing.assert_close(gradient, boosting_weights(LABELS, ENSEMBLE)[:, None] * error / (3 * 2))


def test_reconcile_weight_zero_is_the_error_weight_over_classes_times_cross_entropy() -> None:
    losses = boosting_loss(_logits(), LABELS, ENSEMBLE, reconcile_weight=0.0)
    torch.testing.assert_close(losses, 5.0 / 3.0 * functional.cross_entropy(_logits(), LABELS, reduction="none"))


@pytest.mark.parametrize("form", ["true_class", "full"])
def test_no_gradient_reaches_the_ensemble(form: Reconcilement) -> None:
    logits, ensemble = _logits(), ENSEMBLE.clone().requires_grad_()
    loss = boosting_loss(logits, LABELS, ensemble, form=form).sum()
    gradients = torch.autograd.grad(loss, [logits, ensemble], allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1] is None


def test_consolidation_moves_only_the_modality_in_training() -> None:
    logits, previous = _logits(), ENSEMBLE.clone().requires_grad_()
    loss = consolidation_loss(logits, previous)
    torch.testing.assert_close(loss, (logits.softmax(1) - ENSEMBLE.softmax(1)).square().mean())
    gradients = torch.autograd.grad(loss, [logits, previous], allow_unused=True)
    assert gradients[0].abs().max() > 0.01
    assert gradients[1] is None


def test_consolidation_as_released_changes_no_gradient() -> None:
    logits = _logits()
    plain = boosting_loss(logits, LABELS, ENSEMBLE).mean()
    released = plain + 0.5 * consolidation_loss(logits.detach(), ENSEMBLE)
    assert torch.equal(*(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (plain, released)))


def _phases(epochs: int, modalities: str, *lengths: int) -> list[tuple[str | None, str]]:
    return [
        (now.active, "".join(now.members))
        for now in (phase(epoch, tuple(modalities), *lengths) for epoch in range(epochs))
    ]


def test_two_modalities_alternate_with_rectification_in_between() -> None:
    stages = [("a", "a"), (None, "a"), ("b", "ab"), (None, "ab"), ("a", "ab"), (None, "ab")]
    assert _phases(6, "ab", 1, 1) == stages


def test_three_modalities_join_in_order() -> None:
    stages = [("a", "a"), (None, "a"), ("b", "ab"), (None, "ab"), ("c", "abc"), (None, "abc"), ("a", "abc")]
    assert _phases(7, "abc", 1, 1) == stages


def test_official_phases_last_four_epochs_each() -> None:
    expected = [("a", "a")] * 4 + [(None, "a")] * 4 + [("b", "ab")] * 4 + [(None, "ab")] * 4
    assert _phases(16, "ab", 4, 4) == expected
    assert [epoch for epoch in range(16) if phase(epoch, ("a", "b"), 4, 4).begins] == [0, 4, 8, 12]


@pytest.mark.parametrize(("epochs", "length"), [(15, 1), (100, 1), (400, 2), (800, 4)])
def test_default_phases_are_the_official_share_of_the_run_and_never_empty(epochs: int, length: int) -> None:
    assert ReconBoost.lengths(ReconBoost.Options(), epochs) == (length, length)
    assert ReconBoost.lengths(ReconBoost.Options(boosting=0.04), 100) == (4, 1)


class _Encoder(nn.Module):
    width = 6

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape[0], 6), nn.BatchNorm1d(6), nn.Tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.layers(inputs)
        return hidden


PROTOCOL = Protocol(epochs=7, batch_size=8, optimizer=Optimizer(lr=0.05))


def _task(modalities: str = "ab", epochs: int = 7) -> Task:
    return Task({m: SHAPES[m] for m in modalities}, 3, epochs, lambda _, shape: _Encoder(shape))


def _method(modalities: str = "ab", **options: Any) -> ReconBoost:
    return ReconBoost(ReconBoost.Options(**options), _task(modalities))


def _context(method: Method) -> Context:
    model = initialised(method, 0).train()
    plan = Plan(7, 40, 15, method.task.modalities, 8)
    run = Run(method.task, plan, PARTS["train"], PARTS["val"], 0, PROTOCOL)
    return Context(run, model, method.parameters(model))


def _train_epoch(method: Method, ctx: Context, epoch: int) -> set[str]:
    """Train one epoch and return the names of the parameters and buffers that changed."""
    before = {name: value.clone() for name, value in ctx.model.state_dict().items()}
    ctx.start(epoch)
    method.start_epoch(ctx)
    for batch in method.batches(ctx):
        method.step(batch, ctx)
    return {name for name, value in ctx.model.state_dict().items() if not torch.equal(value, before[name])}


def _encoder(modality: str, buffers_only: bool = False) -> set[str]:
    buffers = {"running_mean", "running_var", "num_batches_tracked"}
    names = {f"layers.1.{name}" for name in buffers}
    if not buffers_only:
        names |= {f"layers.{layer}.{name}" for layer in (0, 1) for name in ("weight", "bias")}
    return {f"encoders.{modality}.{name}" for name in names}


HEAD = {f"head.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")}


def test_each_phase_changes_what_it_trains_and_the_statistics_of_what_it_runs() -> None:
    method = _method()
    ctx = _context(method)
    changed = [_train_epoch(method, ctx, epoch) for epoch in range(5)]
    assert changed[0] == _encoder("a") | HEAD | {"members"}
    assert changed[1] == _encoder("a") | HEAD | {"scale"}
    assert changed[2] == _encoder("b") | _encoder("a", buffers_only=True) | HEAD | {"members"}
    assert changed[3] == _encoder("a") | _encoder("b") | HEAD | {"scale"}
    assert changed[4] == _encoder("a") | _encoder("b", buffers_only=True) | HEAD


def test_every_phase_starts_with_empty_momentum_and_keeps_it_to_its_end() -> None:
    method = _method(boosting=2 / 7, rectification=2 / 7)
    ctx = _context(method)
    found = []
    for epoch in range(5):
        ctx.start(epoch)
        method.start_epoch(ctx)
        found.append(bool(ctx.optimizer.state))
        _train_epoch(method, ctx, epoch)
    assert found == [False, True, False, True, False]


def _first_loss(method: ReconBoost, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Any]:
    """Return the loss of the epoch's first batch, and the batch; nothing is updated."""
    seen: list[Tensor] = []
    monkeypatch.setattr(ctx, "update", lambda loss: seen.append(loss.detach()))
    batch = next(ctx.batches())
    method.step(batch, ctx)
    return seen[0], batch


@pytest.mark.parametrize("form", ["true_class", "full"])
@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_boosting_phase_trains_the_active_modality_against_the_others(
    epoch: int, form: Reconcilement, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = _method(reconcilement=form, scale=0.7)
    ctx = _context(method)
    for earlier in range(epoch):
        _train_epoch(method, ctx, earlier)
    ctx.start(epoch)
    method.start_epoch(ctx)
    loss, batch = _first_loss(method, ctx, monkeypatch)
    assert isinstance(ctx.model, BoostedModel)
    votes = ctx.model.unimodal_logits(ctx.model.encode(batch.inputs))
    active, other = ("b", "a") if epoch == 2 else ("a", "b")
    ensemble = None if epoch == 0 else ctx.model.scale * votes[other]
    torch.testing.assert_close(loss, boosting_loss(votes[active], batch.labels, ensemble, form=form).mean())


def test_rectification_is_cross_entropy_of_the_scaled_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    method = _method(scale=0.7)
    ctx = _context(method)
    ctx.start(3)
    method.start_epoch(ctx)
    loss, batch = _first_loss(method, ctx, monkeypatch)
    votes = ctx.model.unimodal_logits(ctx.model.encode(batch.inputs))
    torch.testing.assert_close(loss, functional.cross_entropy(0.7 * (votes["a"] + votes["b"]), batch.labels))


def test_consolidation_acts_from_the_second_stage_on(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    for consolidation in ("none", "previous"):
        method = _method(consolidation=consolidation)
        ctx = _context(method)
        found = []
        for epoch in (0, 2):
            ctx.start(epoch)
            method.start_epoch(ctx)
            found.append(_first_loss(method, ctx, monkeypatch))
        losses[consolidation] = [loss for loss, _ in found]
    batch = found[-1][1]
    votes = ctx.model.unimodal_logits(ctx.model.encode(batch.inputs))
    assert torch.equal(losses["previous"][0], losses["none"][0])
    difference = losses["previous"][1] - losses["none"][1]
    torch.testing.assert_close(
        difference, 0.5 * consolidation_loss(votes["b"], votes["a"]).detach(), rtol=1e-4, atol=1e-6
    )


def test_only_members_vote_and_a_missing_modality_has_no_say() -> None:
    method = _method("abc")
    ctx = _context(method)
    ctx.start(3)
    method.start_epoch(ctx)
    model = ctx.model.eval()
    features = model.encode(PARTS["val"].inputs)
    votes = model.unimodal_logits(features)
    assert isinstance(model, BoostedModel)
    torch.testing.assert_close(model.classify(features), model.scale * (votes["a"] + votes["b"]))
    torch.testing.assert_close(model.classify({"b": features["b"]}), model.scale * votes["b"])
    assert model.classify({"c": features["c"]}).abs().max() == 0


def test_encoders_start_as_those_of_joint_training() -> None:
    joint, boosted = initialised(Method(Method.Options(), _task()), 5), initialised(_method(), 5)
    assert same_parameters(joint.encoders, boosted.encoders)


def test_the_task_s_fusion_is_not_used() -> None:
    task = Task({"a": (4,), "b": (3,)}, 3, 7, lambda _, shape: _Encoder(shape), FiLM)
    model = initialised(ReconBoost(ReconBoost.Options(), task), 0)
    assert list(model.fusion.parameters()) == []


@pytest.mark.parametrize(
    ("modalities", "options", "forward", "backward"),
    [
        ("ab", {}, (2 * 1 + 5 * 2) / 14, (1 + 1 + 1 + 2 + 1 + 2 + 1) / 14),
        ("abc", {}, (2 * 1 + 2 * 2 + 3 * 3) / 21, (1 + 1 + 1 + 2 + 1 + 3 + 1) / 21),
        (
            "ab",
            {"boosting": 2 / 7, "consolidation": "previous"},
            (3 * 1 + 4 * 2) / 14,
            (3 + 2 + 2 + 1) / 14,
        ),
    ],
)
def test_counted_passes_are_those_expected(
    modalities: str, options: dict[str, Any], forward: float, backward: float
) -> None:
    method = _method(modalities, **options)
    counted = fit(method, PARTS, PROTOCOL, 0).passes
    for passes in (counted, method.expected_passes(Plan(7, 40, 15, method.task.modalities, 8))):
        assert (passes.forward, passes.backward) == pytest.approx((forward, backward))


def test_a_boosting_epoch_costs_two_thirds_of_joint_training_and_rectification_the_same() -> None:
    per_epoch = ReconBoost.info.passes.relative
    assert per_epoch == pytest.approx((4 / 6 + 1) / 2)
    long = _method(boosting=0.001, rectification=0.001).expected_passes(Plan(1000, 40, 15, ("a", "b"), 8)).relative
    assert long == pytest.approx(per_epoch, rel=2e-3)


@pytest.mark.parametrize("stopped_in", [2, 4])
def test_interrupted_run_ends_with_the_same_metrics(tmp_path: Path, stopped_in: int) -> None:
    def run(**settings: Any) -> Fit:
        return fit(_method(boosting=2 / 7), PARTS, PROTOCOL, 0, **settings)

    resumes(run, tmp_path / "run.ckpt", stopped_in)


def test_a_reconcile_weight_above_the_error_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match="flip the loss's sign"):
        ReconBoost.Options(error_weight=1.0, reconcile_weight=1.5)


def test_a_run_that_ends_before_every_modality_has_joined_is_refused() -> None:
    options = ReconBoost.Options()
    assert ReconBoost.refuses(options, _task(epochs=3)) is None
    assert "at least 3 epochs, found 2" in str(ReconBoost.refuses(options, _task(epochs=2)))
    assert "at least 5 epochs" in str(ReconBoost.refuses(options, _task("abc", epochs=4)))


def test_unequal_widths_are_refused() -> None:
    class Wide(_Encoder):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__(shape)
            self.width = shape[0]

    task = Task({"a": (4,), "b": (3,)}, 3, 7, lambda _, shape: Wide(shape))
    assert "equal width" in str(ReconBoost.refuses(ReconBoost.Options(), task))
