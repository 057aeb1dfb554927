"""IMCL: worked numbers, invariants, routing, teachers and their state."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.imcl import IMCL, distillation_losses, moved_threshold, sample_weights, superloss, task_share
from benchmark.context import Context
from benchmark.data import Part
from benchmark.method import Passes, Plan
from benchmark.model import MultimodalModel, same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import Fit, fit
from tests.baselines.scenes import WIDTHS, DisturbableEncoder, context, descent, noisy_part, resumes


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: list[float], tolerance: float = 5.1e-7) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=tolerance)


FIRST, SECOND = vector(0.2, 1.0, 2.4, 4.4), vector(0.1, 0.5, 3.0, 0.4)


class TestWorkedNumbers:
    """Weights were printed by the official code, whose largest one is 2.718277; hence 1e-5 for what depends on it."""

    def test_first_step_has_its_mean_as_threshold_and_two_weights_at_e(self) -> None:
        threshold = moved_threshold(FIRST)
        assert float(threshold) == pytest.approx(2.0)
        weights = sample_weights(FIRST, threshold)
        close(weights[:2], [2.718277, 2.718277], 1e-5)
        assert weights[:2].tolist() == [math.e, math.e]
        close(weights[2:], [0.844580, 0.529637])

    def test_first_step_loses_minus_0892439_with_gradient_a_quarter_of_the_weights(self) -> None:
        losses = FIRST.clone().requires_grad_()
        threshold = moved_threshold(losses)
        loss = superloss(losses, threshold, sample_weights(losses, threshold))
        (gradient,) = torch.autograd.grad(loss, losses)
        assert loss.item() == pytest.approx(-0.892439, abs=5.1e-7)
        assert loss.item() == pytest.approx(-0.892437, abs=1e-5)
        close(gradient[:2], [0.679569, 0.679569], 1e-5)
        close(gradient[2:], [0.211145, 0.132409])

    def test_second_step_moves_the_threshold_to_1_9(self) -> None:
        threshold = moved_threshold(SECOND, moved_threshold(FIRST))
        assert float(threshold) == pytest.approx(1.9)
        weights = sample_weights(SECOND, threshold)
        close(weights[[0, 1, 3]], [2.718277] * 3, 1e-5)
        close(weights[2:3], [0.685790])
        assert float(superloss(SECOND, threshold, weights)) == pytest.approx(-2.219822, abs=5.1e-7)
        assert float(superloss(SECOND, threshold, weights)) == pytest.approx(-2.219819, abs=1e-5)

    @pytest.mark.parametrize(
        ("excess", "weight"),
        [(0, 1.0), (1, 0.703467), (2, 0.567143), (-0.5, 1.429612), (-0.735759, 2.718282), (-5, 2.718282)],
    )
    def test_weight_of_an_excess_loss(self, excess: float, weight: float) -> None:
        close(sample_weights(vector(3.0 + excess), 3.0), [weight])

    @pytest.mark.parametrize(
        ("distillation", "task", "paper", "code"),
        [
            ((1, 0), (0, 2), 0.8, 0.8),
            ((1, 1), (-2, 1), 0.666667, 0.666667),
            ((1, 0), (3, 1), 1.0, 0.999),
            ((3, 1), (1, 0), 0.0, 0.001),
        ],
    )
    def test_share_of_two_gradients(
        self, distillation: tuple[float, ...], task: tuple[float, ...], paper: float, code: float
    ) -> None:
        g, h = vector(*distillation)[None], vector(*task)[None]
        assert task_share(g, h) == pytest.approx(paper, abs=5e-7)
        assert task_share(g, h, "code") == pytest.approx(code, abs=5e-7)


class TestInvariants:
    @pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
    def test_weights_fall_with_the_loss_and_minimise_it_where_they_are_below_e(self, beta: float) -> None:
        losses = torch.linspace(-1, 200, 500, dtype=torch.float64)
        weights = sample_weights(losses, 3.0, beta)
        assert bool((weights.diff() <= 0).all())
        assert float(weights.max()) <= math.e
        inner = weights < math.e
        slope = (losses - 3.0) * weights + 2 * beta * weights.log()
        torch.testing.assert_close(slope[inner], torch.zeros(int(inner.sum()), dtype=torch.float64), rtol=0, atol=1e-9)

    def test_strong_regularisation_weighs_all_samples_alike(self) -> None:
        close(sample_weights(FIRST, 2.0, beta=1e9), [1.0] * 4, 1e-8)

    def test_huge_losses_of_single_precision_keep_a_weight(self) -> None:
        weights = sample_weights(torch.tensor([1e5, 1e8]), 0.0)
        assert weights.dtype == torch.float32
        assert bool((weights > 0).all())

    def test_distances_are_summed_or_averaged_over_features(self) -> None:
        student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [1.0, 1.0]])
        assert distillation_losses(student, teacher, "sum").tolist() == [4.0, 2.0]
        assert distillation_losses(student, teacher).tolist() == [2.0, 1.0]

    def test_modality_without_a_task_gradient_has_share_zero_and_one_at_its_teacher_share_one(self) -> None:
        zero, some = torch.zeros(2, 3), torch.ones(2, 3)
        assert task_share(some, zero) == 0.0
        assert task_share(zero, some) == 1.0


EPOCHS = 4


def part(modalities: str = "ab", samples: int = 40) -> Part:
    return noisy_part(modalities, samples)


def build(modalities: str = "ab", **options: Any) -> IMCL:
    task = Task(dict.fromkeys(modalities, (3,)), 3, EPOCHS, lambda name, shape: DisturbableEncoder(shape, WIDTHS[name]))
    return IMCL(IMCL.Options(**options), task)


def prepare(modalities: str = "ab", **options: Any) -> tuple[IMCL, Context]:
    """Return a method and a context of plain gradient descent with learning rate 1/2, dropout off."""
    method = build(modalities, **options)
    torch.manual_seed(0)
    model = method.build()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return method, context(method, model, part(modalities), 16, optimizer=descent(0.5))


def train(method: IMCL, **settings: Any) -> Fit:
    protocol = Protocol(epochs=EPOCHS, batch_size=16, optimizer=Optimizer(lr=0.1))
    return fit(method, {name: part() for name in ("train", "val", "test")}, protocol, 0, **settings)


def gradient(model: MultimodalModel, loss: Tensor, prefix: str) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if name.startswith(prefix)}
    values = torch.autograd.grad(loss, list(named.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(named, values, strict=True))


class TestStep:
    @pytest.mark.parametrize("modalities", ["ab", "abc"])
    def test_one_encoder_learns_the_task_and_the_others_from_their_teachers(self, modalities: str) -> None:
        method, ctx = prepare(modalities)
        method.start_epoch(ctx)
        batch = next(iter(ctx.batches()))
        before = copy.deepcopy(ctx.model).train()
        method.step(batch, ctx)
        learner = next(m for m in modalities if f"distillation, {m}" not in method.thresholds)

        features = before.encode(batch.inputs)
        assert method.teachers is not None
        taught = method.teachers.encode(batch.inputs)
        apart = {m: distillation_losses(z, taught[m]) for m, z in features.items()}
        fused = functional.cross_entropy(before.classify(features), batch.labels, reduction="none")
        shares = {
            m: task_share(
                torch.autograd.grad(apart[m].mean(), z, retain_graph=True)[0],
                torch.autograd.grad(fused.mean(), z, retain_graph=True)[0],
            )
            for m, z in features.items()
        }
        assert shares[learner] == max(shares.values())
        streams = {m: fused if m == learner else values for m, values in apart.items()}
        weighted = {m: (sample_weights(v, v.detach().mean()) * v).mean() for m, v in streams.items()}
        expected = gradient(before, weighted[learner], "head.")
        for m in modalities:
            expected |= gradient(before, weighted[m], f"encoders.{m}.")
        old = dict(before.named_parameters())
        assert expected.keys() == old.keys()
        for name, parameter in ctx.model.named_parameters():
            torch.testing.assert_close((old[name] - parameter) / 0.5, expected[name], rtol=1e-4, atol=1e-6, msg=name)

    def test_student_at_its_teachers_features_moves_only_by_the_task(self) -> None:
        method, ctx = prepare()
        method.start_epoch(ctx)
        batch = next(iter(ctx.batches()))
        with torch.no_grad():
            features = copy.deepcopy(ctx.model).train().encode(batch.inputs)
        method.targets = {m: torch.zeros(40, z.shape[1]) for m, z in features.items()}
        for m, z in features.items():
            method.targets[m][batch.index] = z
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        # Both shares are 1 and the first modality learns the task.
        assert set(method.thresholds) == {"task", "distillation, b"}
        for name, value in before.encoder_parameters("b").items():
            assert torch.equal(value, ctx.model.encoder_parameters("b")[name]), name
        assert not same_parameters(before.encoders["a"], ctx.model.encoders["a"])

    @pytest.mark.parametrize(("reading", "streams"), [("used", 2), ("always", 3)])
    def test_threshold_of_an_idle_stream_moves_only_with_always(self, reading: str, streams: int) -> None:
        method, ctx = prepare(threshold=reading)
        method.start_epoch(ctx)
        method.step(next(iter(ctx.batches())), ctx)
        assert len(method.thresholds) == streams

    def test_clipping_bounds_the_whole_step(self) -> None:
        method, ctx = prepare(clip_norm=1e-3)
        method.start_epoch(ctx)
        before = [p.detach().clone() for p in ctx.model.parameters()]
        method.step(next(iter(ctx.batches())), ctx)
        moved = [(a - b).square().sum() for a, b in zip(before, ctx.model.parameters(), strict=True)]
        assert torch.stack(moved).sum().sqrt().item() == pytest.approx(0.5e-3, rel=1e-3)

    def test_every_step_is_noted(self) -> None:
        method, ctx = prepare()
        method.start_epoch(ctx)
        for batch in ctx.batches():
            method.step(batch, ctx)
        notes = ctx.notes()
        assert notes["share of steps on the task, a"] + notes["share of steps on the task, b"] == 1.0
        assert 0 < notes["mean weight, task"] <= math.e


class TestTeachers:
    def test_they_learn_their_modality_alone_while_the_student_stays(self) -> None:
        method, ctx = prepare()
        before = copy.deepcopy(ctx.model)
        state = torch.get_rng_state()
        method.start_epoch(ctx)
        assert same_parameters(before, ctx.model)
        assert torch.equal(torch.get_rng_state(), state)
        teachers = method.teachers
        assert teachers is not None
        assert not teachers.training
        assert not any(p.requires_grad for p in teachers.parameters())
        assert same_parameters(teachers.head, before.head)
        batch = next(part().batches(40))
        for logits in teachers.predict(batch.inputs).unimodal.values():
            assert functional.cross_entropy(logits, batch.labels) < 1.0 < math.log(3)

    def test_they_are_frozen_for_the_whole_run(self) -> None:
        method, ctx = prepare()
        method.start_epoch(ctx)
        first = copy.deepcopy(method.teachers)
        assert first is not None
        for batch in ctx.batches():
            method.step(batch, ctx)
        ctx.start(1)
        method.start_epoch(ctx)
        assert method.teachers is not None
        assert same_parameters(first, method.teachers)

    def test_without_augmentation_it_does_not_matter_when_they_look(self) -> None:
        both = [train(build(teacher_view=view)) for view in ("augmented", "once")]
        for a, b in zip(*(run.model.parameters() for run in both), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "forward", "backward"),
        [({}, 3.0, 2.0), ({"teacher_length": 0.5}, 2.5, 1.5), ({"teacher_view": "once"}, 2.25, 2.0)],
    )
    def test_passes(self, options: dict[str, Any], forward: float, backward: float) -> None:
        method = build(**options)
        assert train(method).passes == Passes(forward, backward)
        assert method.expected_passes(Plan(EPOCHS, 40, 40, ("a", "b"), 16)) == Passes(forward, backward)

    def test_relative_cost_is_a_third_more_than_joint_beside_the_teachers(self) -> None:
        cost = build().expected_passes(Plan(100, 40, 40, ("a", "b"), 16)).relative
        assert cost == pytest.approx(4 / 3 + 1)


@pytest.mark.parametrize("options", [{}, {"teacher_view": "once", "threshold": "always", "clamps": "code"}])
def test_interrupted_run_ends_with_the_same_metrics(options: dict[str, Any], tmp_path: Path) -> None:
    resumes(lambda **settings: train(build(**options), **settings), tmp_path / "run.ckpt", 1)
