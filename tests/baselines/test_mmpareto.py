"""MMPareto: worked numbers, invariants, and the step inside the loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.mmpareto import MMPareto, Rescale, combine_, pareto_weight
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.diagnostics import PassCounter
from benchmark.gradients import cosine, flatten
from benchmark.method import Passes
from benchmark.task import Task
from tests.baselines.scenes import TanhEncoder, context


def vectors(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=5.1e-7)


def share_of(multimodal: Tensor, unimodal: Tensor) -> float:
    """Return the multimodal share of two vectors."""
    return float(pareto_weight(multimodal.dot(multimodal), unimodal.dot(unimodal), multimodal.dot(unimodal)))


def combine(
    multimodal: Sequence[Tensor], unimodal: Sequence[Tensor], gamma: float = 1.5, rescale: Rescale = "tensor"
) -> list[Tensor]:
    """Return the update and leave the gradients as they are."""
    return combine_([x.clone() for x in multimodal], unimodal, gamma=gamma, rescale=rescale)


def random_tensors(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return conflicting gradients of an encoder with three parameter tensors."""
    generator = torch.Generator().manual_seed(seed)
    a = [torch.randn(size, dtype=torch.float64, generator=generator) for size in (3, 2, 4)]
    b = [torch.randn(size, dtype=torch.float64, generator=generator) for size in (3, 2, 4)]
    sign = -1 if torch.dot(flatten(a), flatten(b)) > 0 else 1
    return a, [sign * tensor for tensor in b]


# Found by random search: with one norm correction per tensor the update climbs the second loss.
A_CLIMBING = vectors([-2, 2], [-2, 0], [-1, 1])
B_CLIMBING = vectors([4, -4], [2, 0], [3, -1])


class TestWorkedNumbers:
    def test_conflict_in_one_tensor(self) -> None:
        a, b = vectors([3, 0]), vectors([-1, 1])
        assert float(cosine(a[0], b[0])) == pytest.approx(-0.707107, abs=5e-7)
        assert share_of(a[0], b[0]) == pytest.approx(0.294118, abs=5e-7)
        close(combine(a, b)[0], [0.813489, 3.253957])

    def test_agreement_is_gamma_times_the_sum(self) -> None:
        a, b = vectors([3, 0]), vectors([1, 1])
        assert float(cosine(a[0], b[0])) == pytest.approx(0.707107, abs=5e-7)
        close(combine(a, b)[0], [6, 1.5])

    def test_orthogonal_gradients_go_to_the_solver(self) -> None:
        a, b = vectors([1, 0]), vectors([0, 2])
        assert share_of(a[0], b[0]) == pytest.approx(0.8)
        mixed = 1.6 * a[0] + 0.4 * b[0]
        assert float((a[0] + b[0]).norm()) == pytest.approx(2.236068, abs=5e-7)
        assert float(mixed.norm()) == pytest.approx(1.788854, abs=5e-7)
        close(combine(a, b, gamma=1.0)[0], [1.6 * 1.25, 0.8 * 1.25])
        close(combine(a, b)[0], [3.0, 1.5])

    def test_norm_correction_of_two_tensors_is_per_tensor(self) -> None:
        a, b = vectors([3, 0], [1, 0]), vectors([-2, 1], [0.5, 1])
        share = share_of(flatten(a), flatten(b))
        assert float(cosine(flatten(a), flatten(b))) == pytest.approx(-0.695701, abs=5e-7)
        assert share == pytest.approx(0.431193, abs=5e-7)
        first, second = combine(a, b)
        close(first, [0.560948, 2.045810])
        close(second, [2.146789, 1.706422])
        direction = 2 * share * flatten(a) + 2 * (1 - share) * flatten(b)
        assert float(cosine(flatten([first, second]), direction)) == pytest.approx(0.996356, abs=5e-7)
        assert float(torch.dot(direction, flatten(a))) == pytest.approx(2.366972, abs=5e-7)
        assert float(torch.dot(direction, flatten(b))) == pytest.approx(2.366972, abs=5e-7)


class TestInvariants:
    @pytest.mark.parametrize("seed", range(5))
    def test_swapping_the_gradients_swaps_the_weights(self, seed: int) -> None:
        a, b = map(flatten, random_tensors(seed))
        assert share_of(a, b) == pytest.approx(1 - share_of(b, a))

    @pytest.mark.parametrize("rescale", ["tensor", "encoder"])
    @pytest.mark.parametrize("scale", [1e-6, 1e15])
    def test_scaling_both_gradients_scales_the_result(self, scale: float, rescale: Rescale) -> None:
        a, b = random_tensors(0)
        scaled = combine([scale * x for x in a], [scale * x for x in b], rescale=rescale)
        torch.testing.assert_close(flatten(scaled), scale * flatten(combine(a, b, rescale=rescale)))

    @pytest.mark.parametrize("seed", range(5))
    def test_every_tensor_has_at_least_gamma_times_the_norm_of_the_plain_sum(self, seed: int) -> None:
        a, b = random_tensors(seed)
        for update, x, y in zip(combine(a, b), a, b, strict=True):
            assert float(update.norm()) >= 1.5 * float((x + y).norm()) * (1 - 1e-12)

    def test_agreeing_tensors_give_gamma_times_the_sum(self) -> None:
        a, b = ([x.float() for x in row] for row in random_tensors(1))
        for update, x, y in zip(combine(a, [-y for y in b]), a, b, strict=True):
            torch.testing.assert_close(update, 1.5 * (x - y))

    def test_the_multimodal_gradient_becomes_the_update_and_the_unimodal_one_stays(self) -> None:
        a, b = random_tensors(2)
        expected, kept = combine(a, b), [y.clone() for y in b]
        assert all(update is x for update, x in zip(combine_(a, b), a, strict=True))
        assert torch.equal(flatten(a), flatten(expected))
        assert torch.equal(flatten(b), flatten(kept))

    @pytest.mark.parametrize("seed", range(5))
    def test_encoder_rescale_keeps_the_pareto_direction_and_descends_both_losses(self, seed: int) -> None:
        a, b = random_tensors(seed)
        update = flatten(combine(a, b, rescale="encoder"))
        share = share_of(flatten(a), flatten(b))
        assert float(cosine(update, share * flatten(a) + (1 - share) * flatten(b))) == pytest.approx(1)
        assert float(torch.dot(update, flatten(a))) > 0
        assert float(torch.dot(update, flatten(b))) > 0

    def test_tensor_rescale_can_climb_one_of_the_losses(self) -> None:
        per_tensor = flatten(combine(A_CLIMBING, B_CLIMBING))
        per_encoder = flatten(combine(A_CLIMBING, B_CLIMBING, rescale="encoder"))
        losses = flatten(A_CLIMBING), flatten(B_CLIMBING)
        assert min(float(cosine(per_tensor, loss)) for loss in losses) == pytest.approx(-0.44315, abs=5e-6)
        assert min(float(cosine(per_encoder, loss)) for loss in losses) > 0

    def test_one_zero_gradient_leaves_gamma_times_the_other(self) -> None:
        zero, b = vectors([0, 0], [0]), vectors([1, -2], [0.5])
        for update, expected in zip(combine(zero, b), b, strict=True):
            assert torch.equal(update, 1.5 * expected)

    def test_tensor_without_gradient_stays_zero_beside_a_conflicting_one(self) -> None:
        update = combine(vectors([3, 0], [0]), vectors([-1, 1], [0]))
        close(update[0], [0.813489, 3.253957])
        assert torch.equal(update[1], torch.zeros(1, dtype=torch.float64))


def prepare(opposed: bool, **options: Any) -> tuple[MMPareto, Context, Batch]:
    """Return a method, a context of plain gradient descent with learning rate 1, and a batch.

    The unimodal heads copy the fused head, or are `opposed` to it, so that all encoders are in conflict.
    """
    widths = {"a": 4, "b": 5}
    task = Task({"a": (3,), "b": (3,)}, 3, 1, lambda name, shape: TanhEncoder(shape, widths[name]))
    method = MMPareto(MMPareto.Options(**options), task)
    torch.manual_seed(0)
    model = method.build()
    for m, head in model.unimodal_heads.items():
        weight = model.head.weight.data[:, model.fusion.slices[m]]
        head.weight.data.copy_(-weight if opposed else weight)  # type: ignore[operator]
    part = Part.from_tensors({m: torch.randn(6, 3) for m in "ab"}, torch.randint(3, (6,)))
    return method, context(method, model, part, 6), next(part.batches(6))


class TestStep:
    @pytest.mark.parametrize("opposed", [False, True])
    @pytest.mark.parametrize("rescale", ["tensor", "encoder"])
    def test_encoders_combine_two_gradients_and_heads_keep_the_plain_one(self, opposed: bool, rescale: Rescale) -> None:
        method, ctx, batch = prepare(opposed, gamma=2.0, rescale=rescale)
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        prediction = before.predict(batch.inputs)
        fused = functional.cross_entropy(prediction.logits, batch.labels)
        unimodal = {m: functional.cross_entropy(z, batch.labels) for m, z in prediction.unimodal.items()}
        plain = dict(before.named_parameters())
        total = torch.autograd.grad(fused + sum(unimodal.values()), list(plain.values()), retain_graph=True)
        expected = dict(zip(plain, total, strict=True))
        for m, loss in unimodal.items():
            names = [name for name in plain if name.startswith(f"encoders.{m}.")]
            a, b = (torch.autograd.grad(x, [plain[n] for n in names], retain_graph=True) for x in (fused, loss))
            assert (float(torch.dot(flatten(a), flatten(b))) < 0) is opposed
            updates = combine(a, b, gamma=2.0, rescale=rescale)
            expected.update(zip(names, updates, strict=True))
        for name, parameter in ctx.model.named_parameters():
            torch.testing.assert_close(plain[name] - parameter, expected[name], msg=name)

    def test_third_backward_of_the_official_code_is_saved(self) -> None:
        method, ctx, batch = prepare(opposed=True)
        counter = PassCounter(("a", "b"))
        counter.watch(ctx.model.encoders)
        method.step(batch, ctx)
        assert counter.passes(6, 1) == method.expected_passes(ctx.plan) == Passes(1, 2)
        assert Passes(1, 2).relative == pytest.approx(5 / 3)

    def test_inference_uses_the_fused_head(self) -> None:
        method, ctx, batch = prepare(opposed=False)
        expected = ctx.model.classify(ctx.model.encode(batch.inputs))
        assert torch.equal(method.predict(ctx.model, batch).logits, expected)
