"""CGGM: worked numbers, invariants, and what a step does to encoders, fused head and classifiers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines import cggm
from baselines.cggm import CGGM, accuracies, direction_loss, factors
from benchmark.conformance import resumes_bit_for_bit
from benchmark.conformance_trial import Finding, Outcome, Trial
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.diagnostics import PassCounter
from benchmark.fusion import Concat, Fusion, Sum
from benchmark.method import Method, Passes
from benchmark.model import output_layer
from benchmark.task import Task
from tests.baselines.scenes import TanhEncoder, context


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: object, atol: float = 5.1e-7, rtol: float = 0) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=rtol, atol=atol)


class TestWorkedNumbers:
    def test_the_modality_that_improved_less_gets_more(self) -> None:
        found = factors(vector(0.5, 0.3), vector(0.6, 0.5))
        close(found, [0.666667, 0.333333])
        close(1.3 * found, [0.866667, 0.433333])

    def test_a_falling_score_turns_the_other_one_negative(self) -> None:
        close(factors(vector(0.5, 0.3), vector(0.4, 0.5)), [2, -1], atol=1e-6)

    def test_unmoved_scores_give_ones(self) -> None:
        close(factors(vector(0.5, 0.3), vector(0.5, 0.3)), [1, 1])

    def test_rises_that_cancel_give_ten_million_of_either_sign(self) -> None:
        close(factors(vector(0, 0), vector(0.1, -0.1)), [-1e7, 1e7], rtol=1e-6)

    def test_the_first_step_of_three_modalities_starts_from_zero(self) -> None:
        close(factors(torch.zeros(3), vector(0.5, 0.25, 0.25)), [0.5, 0.75, 0.75])

    def test_three_modalities_sum_to_two(self) -> None:
        found = factors(torch.zeros(3), vector(0.10, 0.02, 0.06))
        close(found, [0.444444, 0.888889, 0.666667])
        assert float(found.sum()) == pytest.approx(2, abs=1e-6)

    def test_direction_loss_and_its_gradient_in_the_fused_head(self) -> None:
        fused = torch.tensor([[1, 2], [0, -1]], dtype=torch.float64, requires_grad=True)
        one, two = torch.tensor([[[1, 0], [0, -1]], [[0, 1], [1, 0]]], dtype=torch.float64)
        weights = factors(vector(0.5, 0.3), vector(0.6, 0.5))
        loss = direction_loss({"a": fused, "v": fused}, {"a": one, "v": two}, weights)
        close(loss.detach(), 0.211325)
        loss.backward()
        assert fused.grad is not None
        close(fused.grad, [[-0.048113, 0.048113], [-0.048113, 0.048113]])
        for other in (one, two):
            alone = direction_loss({"a": fused}, {"a": other}, vector(1))
            close(1 - alone.detach(), 0.577350)


SCORES = st.lists(st.tuples(*[st.integers(0, 64)] * 2), min_size=2, max_size=5)


class TestInvariants:
    @given(SCORES)
    def test_factors_sum_to_one_less_than_the_modalities_where_rises_do_not_cancel(self, pairs: Any) -> None:
        before, after = (torch.tensor(scores, dtype=torch.float64) / 64 for scores in zip(*pairs, strict=True))
        count, moved = len(pairs), abs(float((after - before).sum())) > 1e-3
        if moved:
            assert float(factors(before, after).sum()) == pytest.approx(count - 1, abs=1e-4)
        if torch.equal(before, after):
            assert torch.equal(factors(before, after), torch.ones(count).double())

    @given(SCORES)
    def test_bounded_factors_lie_between_zero_and_one_and_agree_where_nothing_fell(self, pairs: Any) -> None:
        before, after = (torch.tensor(scores, dtype=torch.float64) / 64 for scores in zip(*pairs, strict=True))
        bounded = factors(before, after, "bounded")
        assert float(bounded.min()) >= 0
        assert float(bounded.max()) <= 1
        if bool((after >= before).all()):
            assert torch.equal(bounded, factors(before, after))

    @given(st.lists(st.floats(-1e7, 1e7), min_size=3, max_size=3), st.integers(0, 100))
    def test_direction_loss_is_never_negative(self, weights: list[float], seed: int) -> None:
        fused, own = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(seed)).double()
        loss = direction_loss(dict(enumerate(fused)), dict(enumerate(own)), vector(*weights))  # type: ignore[arg-type]
        assert float(loss) >= 0

    def test_equal_layers_have_no_direction_loss(self) -> None:
        same = {m: torch.randn(3, 4, dtype=torch.float64) for m in "ab"}
        assert float(direction_loss(same, {m: 2 * w for m, w in same.items()}, vector(0.4, 0.6))) == pytest.approx(0)

    def test_scores_are_accuracies(self) -> None:
        logits = {"a": torch.eye(4), "b": torch.tensor([[1.0, 0, 0, 0]] * 4)}
        assert accuracies(logits, torch.arange(4)).tolist() == [1.0, 0.25]


def task(fusion: type[Fusion] = Concat, **widths: int) -> Task:
    return Task(dict.fromkeys(widths, (3,)), 3, 2, lambda name, shape: TanhEncoder(shape, widths[name]), fusion)


def prepare(kind: type[Method] = CGGM, chosen: Task | None = None, **options: Any) -> tuple[Any, Context, list[Batch]]:
    """Return a method, a context of plain gradient descent with learning rate 1, and two batches."""
    chosen = chosen or task(a=4, b=5)
    method = kind(kind.Options(**options), chosen)
    torch.manual_seed(0)
    model = method.build()
    part = Part.from_tensors({m: torch.randn(24, 3) for m in chosen.modalities}, torch.randint(3, (24,)))
    ctx = context(method, model, part, 12)
    method.start_epoch(ctx)
    return method, ctx, list(part.batches(12))


def gradients(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Return by how much a step with learning rate 1 moved each parameter."""
    moved = after.state_dict()
    return {name: (value - moved[name]).detach() for name, value in before.named_parameters()}


def joint_gradients(model: Any, batch: Batch) -> dict[str, Tensor]:
    main = {n: p for n, p in model.named_parameters() if "unimodal" not in n}
    loss = functional.cross_entropy(model.predict(batch.inputs).logits, batch.labels)
    return dict(zip(main, torch.autograd.grad(loss, list(main.values())), strict=True))


def direction_gradient(model: Any, weights: Tensor) -> Tensor:
    """Return the gradient of the direction loss in the fused head, from the definition of the cosine."""
    weight, result = model.head.weight.detach(), torch.zeros_like(model.head.weight)
    for m, factor in zip(model.modalities, weights.float(), strict=True):
        columns = model.fusion.slices[m]
        fused, own = weight[:, columns], model.unimodal_heads[m].weight.detach()
        cosine = (fused * own).sum() / fused.norm() / own.norm()
        result[:, columns] -= factor * (own / own.norm() - cosine * fused / fused.norm()) / fused.norm()
    return result / len(model.modalities)


class TestStep:
    def test_unit_factors_without_direction_and_clipping_are_joint_training_bit_for_bit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cggm, "factors", lambda *_: torch.ones(2).double())
        method, ctx, batches = prepare(rho=1.0, direction_weight=0.0, clip=None)
        joint, joint_ctx, _ = prepare(Method)
        for batch in batches:
            method.step(batch, ctx)
            joint.step(batch, joint_ctx)
        expected = joint_ctx.model.state_dict()
        found = ctx.model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())

    def test_the_first_step_scales_encoders_and_leaves_the_fused_head(self) -> None:
        method, ctx, (batch, _) = prepare(clip=None)
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        scores = accuracies(before.unimodal_logits(before.encode(batch.inputs)), batch.labels)
        scales = dict(zip("ab", (1.3 * factors(torch.zeros(2), scores)).float(), strict=True))
        found = gradients(before, ctx.model)
        for name, gradient in joint_gradients(before, batch).items():
            scale = scales[name.split(".")[1]] if name.startswith("encoders.") else 1.0
            torch.testing.assert_close(found[name], scale * gradient, msg=name)

    def test_the_second_step_adds_the_pull_of_the_first_to_the_fused_weight_alone(self) -> None:
        method, ctx, (first, second) = prepare(clip=None, direction_weight=0.7)
        start = copy.deepcopy(ctx.model)
        method.step(first, ctx)
        pull = direction_gradient(start, method.factors)
        before = copy.deepcopy(ctx.model)
        method.step(second, ctx)
        found, joint = gradients(before, ctx.model), joint_gradients(before, second)
        assert float(pull.norm()) > 1e-3
        torch.testing.assert_close(found["head.weight"], joint["head.weight"] + 0.7 * pull, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["head.bias"], joint["head.bias"])

    def test_classifiers_descend_their_own_losses_at_half_the_learning_rate(self) -> None:
        method, ctx, (batch, _) = prepare()
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        features = {m: z.detach() for m, z in before.encode(batch.inputs).items()}
        heads = {n: p for n, p in before.named_parameters() if n.startswith("unimodal_heads.")}
        losses = [functional.cross_entropy(z, batch.labels) for z in before.unimodal_logits(features).values()]
        expected = torch.autograd.grad(torch.stack(losses).sum(), list(heads.values()))
        found = gradients(before, ctx.model)
        for name, gradient in zip(heads, expected, strict=True):
            torch.testing.assert_close(found[name], 0.5 * gradient, msg=name)

    def test_the_whole_gradient_is_clipped_at_08(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cggm, "factors", lambda *_: vector(-1e7, 1e7))
        method, ctx, (batch, _) = prepare()
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        found = {n: g for n, g in gradients(before, ctx.model).items() if "unimodal" not in n}
        assert float(torch.stack([g.norm() for g in found.values()]).norm()) == pytest.approx(0.8, rel=1e-4)
        climbing = joint_gradients(before, batch)["encoders.a.linear.weight"]
        cosine = functional.cosine_similarity(found["encoders.a.linear.weight"].flatten(), climbing.flatten(), dim=0)
        assert float(cosine) == pytest.approx(-1, abs=1e-5)

    def test_scores_and_pull_outlive_the_epoch(self) -> None:
        method, ctx, (first, second) = prepare()
        method.step(first, ctx)
        kept = method.scores.clone(), method.pull.clone()
        method.end_epoch(ctx)
        ctx.start(1)
        method.start_epoch(ctx)
        assert torch.equal(method.scores, kept[0])
        assert torch.equal(method.pull, kept[1])
        scores = accuracies(ctx.model.predict(second.inputs).unimodal, second.labels)
        method.step(second, ctx)
        assert torch.equal(method.factors, factors(kept[0], scores))

    def test_classifiers_follow_the_schedule(self) -> None:
        method, ctx, _ = prepare(classifier_lr=0.25)
        ctx.set_lr(0.2)
        method.start_epoch(ctx)
        assert method.side.lr == pytest.approx(0.05)
        assert method.side.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)

    def test_it_costs_the_encoder_passes_of_joint_training(self) -> None:
        method, ctx, (batch, _) = prepare()
        counter = PassCounter(("a", "b"))
        counter.watch(ctx.model.encoders)
        method.step(batch, ctx)
        assert counter.passes(12, 1) == method.expected_passes(ctx.plan) == Passes(1, 1)

    def test_inference_uses_the_fused_head(self) -> None:
        method, ctx, (batch, _) = prepare()
        assert torch.equal(method.predict(ctx.model, batch).logits, ctx.model.classify(ctx.model.encode(batch.inputs)))


class TestReadings:
    def test_epochs_compare_their_mean_scores_and_the_first_one_has_no_factors(self) -> None:
        method, ctx, batches = prepare(interval="epoch", clip=None)
        scores = []
        before = ctx.model
        for batch in batches:
            before = copy.deepcopy(ctx.model)
            scores.append(accuracies(before.predict(batch.inputs).unimodal, batch.labels))
            method.step(batch, ctx)
            found = gradients(before, ctx.model)
            for name, gradient in joint_gradients(before, batch).items():
                torch.testing.assert_close(found[name], gradient, msg=name)
        assert (method.factors, method.pull) == (None, None)
        method.end_epoch(ctx)
        mean = torch.stack(scores).mean(0)
        torch.testing.assert_close(method.scores, mean)
        torch.testing.assert_close(method.factors, factors(torch.zeros(2), mean))
        ctx.start(1)
        method.start_epoch(ctx)
        kept = method.factors
        before = copy.deepcopy(ctx.model)
        method.step(batches[0], ctx)
        assert method.factors is kept
        raw = joint_gradients(before, batches[0])["encoders.b.linear.bias"]
        moved = gradients(before, ctx.model)["encoders.b.linear.bias"]
        torch.testing.assert_close(moved, 1.3 * float(kept[1]) * raw)

    def test_gradients_are_compared_by_differentiating_the_fused_losss_gradient(self) -> None:
        method, ctx, (batch, _) = prepare(direction="gradients")
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        features = {m: z.detach() for m, z in before.encode(batch.inputs).items()}
        answers = functional.one_hot(batch.labels, 3)
        weight = before.head.weight.detach().clone().requires_grad_()
        logits = torch.cat(list(features.values()), dim=1) @ weight.T + before.head.bias.detach()
        loss = torch.zeros(())
        for m, factor in zip("ab", method.factors.float(), strict=True):
            fused = (logits.softmax(1) - answers).T @ features[m]
            own = (before.unimodal_logits(features)[m].softmax(1) - answers).T @ features[m]
            cosine = functional.cosine_similarity(fused.flatten(), own.detach().flatten(), dim=0)
            loss = loss + (factor.abs() - factor * cosine) / 2
        (expected,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(method.pull, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("options", [{"interval": "epoch"}, {"direction": "gradients"}, {"form": "bounded"}])
    def test_every_reading_resumes_bit_for_bit(self, options: dict[str, str]) -> None:
        assert resumes_bit_for_bit(Trial(CGGM, options, modalities=3)) == Finding(Outcome.PASSED)

    def test_a_summing_fusion_compares_every_classifier_with_the_whole_head(self) -> None:
        method, ctx, (batch, _) = prepare(chosen=task(Sum, a=4, b=4))
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        torch.testing.assert_close(method.pull, direction_gradient(before, method.factors), rtol=1e-4, atol=1e-6)

    def test_with_a_hidden_layer_output_layers_of_one_shape_are_compared(self) -> None:
        method, ctx, (first, second) = prepare(chosen=replace(task(a=4, b=5), hidden=6), clip=None)
        before = copy.deepcopy(ctx.model)
        own = {m: output_layer(head).weight.detach() for m, head in before.unimodal_heads.items()}
        assert {m: tuple(values.shape) for m, values in own.items()} == dict.fromkeys("ab", (3, 6))
        method.step(first, ctx)
        fused = before.output.weight.detach().requires_grad_()
        loss = direction_loss(dict.fromkeys("ab", fused), own, method.factors.float())
        torch.testing.assert_close(method.pull, torch.autograd.grad(loss, fused)[0])
        pull, before = method.pull, copy.deepcopy(ctx.model)
        method.step(second, ctx)
        expected = joint_gradients(before, second)["head.2.weight"] + 0.2 * pull
        torch.testing.assert_close(gradients(before, ctx.model)["head.2.weight"], expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("hidden", [None, 6])
    def test_all_but_the_classifiers_starts_as_in_joint_training(self, hidden: int | None) -> None:
        chosen = replace(task(a=4, b=5), hidden=hidden)
        own, joint = (prepare(kind, chosen)[1].model.state_dict() for kind in (CGGM, Method))
        assert all(torch.equal(own[name], value) for name, value in joint.items())
        assert {name.partition(".")[0] for name in own.keys() - joint.keys()} == {"unimodal_heads"}


class TestRefusals:
    def test_slices_of_another_width_than_the_features_are_refused(self) -> None:
        assert CGGM.refuses(CGGM.Options(), task(a=4, b=5)) is None
        assert CGGM.refuses(CGGM.Options(), task(Sum, a=4, b=4)) is None
        assert CGGM.refuses(CGGM.Options(), replace(task(Sum, a=4, b=5), hidden=6)) is None
        reason = str(CGGM.refuses(CGGM.Options(), task(Sum, a=4, b=5)))
        assert "{'a': 4, 'b': 5} differ from the slices {'a': 5, 'b': 5} of fusion sum; use concat" in reason

    def test_one_modality_is_refused(self) -> None:
        assert "at least 2 modalities" in str(CGGM.refuses(CGGM.Options(), task(a=4)))

    @pytest.mark.parametrize("options", [{"clip": 0}, {"rho": 0}, {"direction_weight": -1}, {"form": "ema"}])
    def test_bad_options_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            CGGM.Options(**options)
