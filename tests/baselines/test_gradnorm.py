"""GradNorm: the worked numbers, invariants, and the two readings inside the loop."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.gradnorm import (
    SMALLEST_WEIGHT,
    GradNorm,
    relative_rates,
    renormalised,
    softmax_gradient,
    targets,
    weight_gradient,
)
from baselines.joint import Joint
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.diagnostics import PassCounter
from benchmark.fusion import Concat, FiLM, Fusion
from benchmark.method import Method, Passes
from benchmark.model import same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import Fit, fit
from tests.baselines.scenes import TanhEncoder, context, resumes

NORMS = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
LOSSES = torch.tensor([0.9, 1.2, 1.5], dtype=torch.float64)
INITIAL = torch.tensor([1.8, 1.6, 1.5], dtype=torch.float64)
ONES = torch.ones(3, dtype=torch.float64)


def close(found: Tensor | float, expected: object, digits: int = 6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(found).double(), expected, rtol=0, atol=0.51 * 10**-digits)


class TestWorkedNumbers:
    rates = relative_rates(LOSSES, INITIAL)

    def test_relative_rates(self) -> None:
        close(LOSSES / INITIAL, [0.5, 0.75, 1])
        close(self.rates, [0.666667, 1, 1.333333])

    def test_targets(self) -> None:
        close((ONES * NORMS).mean(), 1.166667)
        close(targets(NORMS, ONES, self.rates, 1.5), [0.635053, 1.166667, 1.796201])

    def test_weight_gradient_is_that_of_the_summed_distances(self) -> None:
        weights = ONES.clone().requires_grad_()
        distance = (weights * NORMS - targets(NORMS, ONES, self.rates, 1.5)).abs().sum()
        close(distance.detach(), 2.827815)
        (by_autograd,) = torch.autograd.grad(distance, weights)
        close(weight_gradient(NORMS, ONES, self.rates, 1.5), [2, -0.5, -1], 12)
        close(by_autograd, [2, -0.5, -1], 12)

    @pytest.mark.parametrize(
        ("lr", "stepped", "expected"),
        [
            (0.025, [0.95, 1.0125, 1.025], [0.953975, 1.016736, 1.029289]),
            (0.1, [0.8, 1.05, 1.1], [0.813559, 1.067797, 1.118644]),
        ],
    )
    def test_gradient_step_and_renormalisation(self, lr: float, stepped: list[float], expected: list[float]) -> None:
        weights = ONES - lr * weight_gradient(NORMS, ONES, self.rates, 1.5)
        close(weights, stepped, 12)
        close(renormalised(weights), expected)

    def test_gradient_of_the_softmax_parametrisation(self) -> None:
        gradient = weight_gradient(NORMS, ONES, self.rates, 1.5)
        close(softmax_gradient(gradient, ONES), [1.833333, -0.666667, -1.166667])

    def test_exponent_is_positive_so_that_slow_tasks_and_not_fast_ones_get_more(self) -> None:
        found = targets(NORMS, ONES, self.rates, 1.5)
        assert found[2] > found[1] > found[0]
        close(targets(NORMS, ONES, self.rates, -1.5), [2.143304, 1.166667, 0.757772])


class TestInvariants:
    @pytest.mark.parametrize("seed", range(3))
    def test_softmax_gradient_equals_autograd(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        learnt = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
        gradient = torch.randn(4, generator=generator, dtype=torch.float64)
        weights = 4 * learnt.softmax(0)
        (expected,) = torch.autograd.grad((weights * gradient).sum(), learnt)
        torch.testing.assert_close(softmax_gradient(gradient, weights.detach()), expected)

    @pytest.mark.parametrize("weights", [[0.3, 1.1, 2.5], [-0.5, 1.0, 1.0], [-1.0, -2.0, -3.0]])
    def test_renormalised_weights_are_positive_and_sum_to_their_number(self, weights: list[float]) -> None:
        found = renormalised(torch.tensor(weights))
        assert float(found.sum()) == pytest.approx(3)
        assert bool((found > 0).all())

    def test_equal_norms_without_asymmetry_give_no_gradient(self) -> None:
        assert not weight_gradient(2.5 * ONES, ONES, relative_rates(LOSSES, INITIAL), 0.0).any()

    def test_scaling_all_losses_leaves_the_rates(self) -> None:
        torch.testing.assert_close(relative_rates(7 * LOSSES, INITIAL), relative_rates(LOSSES, INITIAL))

    def test_losses_that_have_vanished_count_as_equally_fast(self) -> None:
        close(relative_rates(0 * LOSSES, INITIAL), [1, 1, 1])

    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_descent_leads_to_the_targets_where_their_mean_is_that_of_the_norms(self, alpha: float) -> None:
        weights, rates = ONES, relative_rates(LOSSES, INITIAL)
        for step in range(3_000):
            gradient = weight_gradient(NORMS, weights, rates, alpha)
            weights = renormalised(weights - 0.02 / (1 + step / 100) * gradient)
        ratio = weights * NORMS / rates**alpha
        torch.testing.assert_close(ratio / ratio.mean(), ONES, rtol=0, atol=0.01)


WIDTHS = {"a": 4, "v": 6, "t": 5}


def task(modalities: str = "av", fusion: type[Fusion] = Concat, epochs: int = 4) -> Task:
    return Task(dict.fromkeys(modalities, (3,)), 3, epochs, lambda m, shape: TanhEncoder(shape, WIDTHS[m]), fusion)


def part(modalities: str, size: int) -> Part:
    generator = torch.Generator().manual_seed(size)
    inputs = {m: torch.randn(size, 3, generator=generator) for m in modalities}
    return Part.from_tensors(inputs, torch.arange(size) % 3)


def prepare(of: Task, **options: Any) -> tuple[GradNorm, Context, Batch]:
    """Return a method, a context of plain gradient descent with learning rate 1, and a batch of 6."""
    method = GradNorm(GradNorm.Options(**options), of)
    torch.manual_seed(0)
    model = method.build()
    data = part("".join(of.modalities), 6)
    ctx = context(method, model, data, 6)
    method.start_epoch(ctx)
    return method, ctx, next(data.batches(6))


def descent(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Return what a step has subtracted from every parameter."""
    new = dict(after.named_parameters())
    return {name: (p - new[name]).detach() for name, p in before.named_parameters()}


class TestModalities:
    @pytest.mark.parametrize("fusion", [Concat, FiLM])
    @pytest.mark.parametrize("modalities", ["av", "avt"])
    def test_encoders_get_their_weight_times_the_joint_gradient_and_all_else_the_joint_one(
        self, modalities: str, fusion: type[Fusion]
    ) -> None:
        method, ctx, batch = prepare(task(modalities, fusion))
        method.learnt = renormalised(torch.arange(1.0, len(modalities) + 1))
        before, weights = copy.deepcopy(ctx.model), dict(zip(modalities, method.weights, strict=True))
        method.step(batch, ctx)
        loss = functional.cross_entropy(before.classify(before.encode(batch.inputs)), batch.labels)
        joint = dict(
            zip(dict(before.named_parameters()), torch.autograd.grad(loss, list(before.parameters())), strict=True)
        )
        for name, gradient in descent(before, ctx.model).items():
            top, _, rest = name.partition(".")
            factor = float(weights[rest[0]]) if top == "encoders" else 1.0
            torch.testing.assert_close(gradient, factor * joint[name], msg=name)

    def test_weights_learn_from_feature_gradients_and_the_slices_losses(self) -> None:
        method, ctx, batch = prepare(task(), initial="classes")
        features = ctx.model.encode(batch.inputs)
        loss = functional.cross_entropy(ctx.model.classify(features), batch.labels)
        norms = torch.stack([g.norm() for g in torch.autograd.grad(loss, list(features.values()))])
        unimodal = ctx.model.unimodal_logits(features).values()
        losses = torch.stack([functional.cross_entropy(logits, batch.labels) for logits in unimodal]).detach()
        gradient = weight_gradient(norms, torch.ones(2), relative_rates(losses, torch.tensor(math.log(3))), 1.5)
        assert (gradient > 0).tolist() in ([True, False], [False, True])
        method.step(batch, ctx)
        # Adam's first step has size lr against the sign of the gradient; the two steps cancel in the sum.
        torch.testing.assert_close(method.weights, 1 - 0.025 * gradient.sign())

    def test_a_modality_that_is_slow_gains_weight_where_norms_are_equal(self) -> None:
        method, ctx, batch = prepare(task(), initial="classes")
        ones = torch.ones(2)
        for _ in range(10):
            method._learn(method.weights, ones, torch.tensor([0.2, 1.0]), batch, ctx)
        assert float(method.weights[0]) < 0.9 < 1.1 < float(method.weights[1])

    @pytest.mark.parametrize(("parametrisation", "recovers"), [("raw", True), ("softmax", False)])
    def test_a_collapsed_weight_recovers_once_norms_have_changed_unless_it_is_a_softmax(
        self, parametrisation: str, recovers: bool
    ) -> None:
        method, ctx, batch = prepare(task(), initial="classes", parametrisation=parametrisation)
        lowest, losses = 1.0, torch.ones(2)
        for step in range(1500):
            norms = torch.tensor([1000.0, 1.0] if step < 300 else [1.0, 1.0])
            method._learn(method.weights, norms, losses, batch, ctx)
            lowest = min(lowest, float(method.weights[0]))
            assert float(method.weights.sum()) == pytest.approx(2)
            assert float(method.weights.min()) > (SMALLEST_WEIGHT / 2 if recovers else 0)
        assert lowest < 0.01 * 2
        assert (abs(float(method.weights[0]) - 1) < 0.1) is recovers


class TestLosses:
    @pytest.mark.parametrize("modalities", ["av", "avt"])
    def test_step_descends_the_weighted_sum_everywhere(self, modalities: str) -> None:
        method, ctx, batch = prepare(task(modalities), tasks="losses")
        method.learnt = renormalised(torch.arange(1.0, len(modalities) + 2))
        weights, before = method.weights, copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        prediction = before.predict(batch.inputs)
        logits = [prediction.logits, *prediction.unimodal.values()]
        losses = torch.stack([functional.cross_entropy(z, batch.labels) for z in logits])
        expected = torch.autograd.grad((weights * losses).sum(), list(before.parameters()))
        for (name, gradient), value in zip(descent(before, ctx.model).items(), expected, strict=True):
            torch.testing.assert_close(gradient, value, msg=name)
        assert float(ctx.loss_sum) == pytest.approx((weights * losses).sum().item())

    @pytest.mark.parametrize("skewed", [False, True])
    def test_weights_learn_from_unweighted_norms_at_the_concatenated_features(
        self, skewed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        method, ctx, batch = prepare(task(), tasks="losses", initial="classes")
        method.learnt = torch.tensor([0.5, 1.5, 1.0]) if skewed else torch.ones(3)
        seen: list[Tensor] = []
        monkeypatch.setattr(method, "_learn", lambda weights, norms, losses, *_: seen.extend((weights, norms, losses)))
        features = ctx.model.encode(batch.inputs)
        leaves = list(features.values())
        own = ctx.model.unimodal_logits(features)
        losses = [functional.cross_entropy(z, batch.labels) for z in (ctx.model.classify(features), *own.values())]
        norms = []
        for loss in losses:
            gradients = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
            norms.append(torch.cat(gradients, dim=1).norm())
        method.step(batch, ctx)
        torch.testing.assert_close(seen[0], method.learnt)
        torch.testing.assert_close(seen[1], torch.stack(norms))
        torch.testing.assert_close(seen[2], torch.stack(losses).detach())


class TestInitialLosses:
    def test_the_first_epochs_mean_is_taken_and_its_weights_stay_equal(self) -> None:
        method, ctx, batch = prepare(task())
        losses = []
        for _ in range(3):
            own = ctx.model.predict(batch.inputs).unimodal.values()
            losses.append(torch.stack([functional.cross_entropy(z, batch.labels) for z in own]).detach())
            method.step(batch, ctx)
        assert method.initial is None
        assert method.weights.tolist() == [1, 1]
        method.end_epoch(ctx)
        torch.testing.assert_close(method.initial, torch.stack(losses).mean(0))
        method.start_epoch(ctx)
        method.step(batch, ctx)
        assert method.weights.tolist() != [1, 1]

    def test_a_small_last_batch_counts_by_its_samples(self) -> None:
        method, ctx, batch = prepare(task())
        small = Batch({m: x[:2] for m, x in batch.inputs.items()}, batch.labels[:2], batch.index[:2])
        method._learn(method.weights, torch.ones(2), torch.tensor([1.0, 2.0]), batch, ctx)
        method._learn(method.weights, torch.ones(2), torch.tensor([3.0, 6.0]), small, ctx)
        method.end_epoch(ctx)
        assert method.initial is not None
        close(method.initial, [1.5, 3.0])

    def test_the_first_batch_starts_with_equal_rates(self) -> None:
        method, ctx, batch = prepare(task(), initial="batch")
        method._learn(method.weights, torch.ones(2), torch.tensor([0.3, 1.2]), batch, ctx)
        assert method.weights.tolist() == [1, 1]
        assert method.initial is not None
        close(method.initial, [0.3, 1.2])

    def test_a_run_of_one_epoch_would_only_measure_and_is_refused(self) -> None:
        assert "use initial=batch" in str(GradNorm.refuses(GradNorm.Options(), task(epochs=1)))
        assert GradNorm.refuses(GradNorm.Options(initial="batch"), task(epochs=1)) is None


EPOCHS = 4


def train(method: Method, **arguments: Any) -> Fit:
    names = "".join(method.task.modalities)
    parts = {name: part(names, size) for name, size in (("train", 21), ("val", 9), ("test", 9))}
    return fit(method, parts, Protocol(epochs=EPOCHS, batch_size=8, optimizer=Optimizer(lr=0.05)), 0, **arguments)


class TestRun:
    @pytest.mark.parametrize("modalities", ["av", "avt"])
    @pytest.mark.parametrize("parametrisation", ["raw", "softmax"])
    def test_frozen_weights_are_joint_training_bit_for_bit(self, parametrisation: str, modalities: str) -> None:
        options = GradNorm.Options.model_validate({**GradNorm.noop, "parametrisation": parametrisation})
        frozen, joint = train(GradNorm(options, task(modalities))), train(Joint(Joint.Options(), task(modalities)))
        assert same_parameters(frozen.model, joint.model)

    @pytest.mark.parametrize("tasks", ["modality", "losses"])
    def test_weights_sum_to_the_number_of_tasks_and_are_recorded_each_epoch(self, tasks: str) -> None:
        run = train(GradNorm(GradNorm.Options(tasks=tasks), task()))
        names = ["weight of fused"] * (tasks == "losses") + ["weight of unimodal a", "weight of unimodal v"]
        for number, record in enumerate(run.epochs):
            assert list(record["notes"]) == names
            assert sum(record["notes"].values()) == pytest.approx(len(names))
            assert (set(record["notes"].values()) == {1.0}) is (number == 0)

    @pytest.mark.parametrize("options", [{}, {"tasks": "losses"}, {"parametrisation": "softmax"}, {"initial": "batch"}])
    def test_interrupted_run_ends_like_an_undisturbed_one(self, options: dict[str, Any], tmp_path: Path) -> None:
        def run(**settings: Any) -> Fit:
            return train(GradNorm(GradNorm.Options(**options), task()), **settings)

        resumes(run, tmp_path / "run.ckpt", 1)

    @pytest.mark.parametrize("tasks", ["modality", "losses"])
    def test_both_readings_cost_what_joint_training_costs(self, tasks: str) -> None:
        method, ctx, batch = prepare(task("avt"), tasks=tasks)
        counter = PassCounter(("a", "v", "t"))
        counter.watch(ctx.model.encoders)
        method.step(batch, ctx)
        assert counter.passes(6, 1) == method.expected_passes(ctx.plan) == Passes(1, 1)


class TestOptions:
    @pytest.mark.parametrize("options", [{"alpha": -1}, {"weight_lr": -0.1}, {"tasks": "dg"}, {"initial": "zero"}])
    def test_bad_options_are_refused_before_anything_runs(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            GradNorm.Options(**options)

    def test_single_modality_is_refused(self) -> None:
        assert "at least 2 modalities" in str(GradNorm.refuses(GradNorm.Options(), task("a")))
