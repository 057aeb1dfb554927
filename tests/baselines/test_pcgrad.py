"""PCGrad: worked numbers, invariants, and the two readings inside the loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.pcgrad import PCGrad, combine, project, project_modalities, visiting_orders
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.diagnostics import PassCounter
from benchmark.gradients import cosine, flatten
from benchmark.method import Passes
from benchmark.model import MultimodalModel
from benchmark.task import Task
from tests.baselines.scenes import TanhEncoder, context

THREE = [torch.tensor(g, dtype=torch.float64) for g in ([2, 0, 1], [-1, 1, 0], [0, -1, -1])]


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=5.1e-7)


def conflicting_pair(seed: int, size: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, size, dtype=torch.float64, generator=generator)
    return (a, b) if torch.dot(a, b) < 0 else (a, -b)


class TestWorkedNumbers:
    g1 = torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)
    g2 = torch.tensor([-1.0, 2.0, 4.0], dtype=torch.float64)

    def test_projections_of_a_conflicting_pair(self) -> None:
        v1, v2 = project([self.g1, self.g2])
        close(v1, [2.571429, 1.857143, -0.285714])
        close(v2, [0.928571, 2.642857, 2.714286])

    def test_sum_of_a_conflicting_pair_is_the_sum_and_not_the_mean(self) -> None:
        close(combine([self.g1, self.g2]), [3.5, 4.5, 2.428571])

    def test_cosine_is_reflected_from_minus_to_plus_052(self) -> None:
        assert float(cosine(self.g1, self.g2)) == pytest.approx(-0.524891, abs=5e-7)
        assert float(cosine(*project([self.g1, self.g2]))) == pytest.approx(0.524891, abs=5e-7)

    def test_both_norms_shrink_by_085(self) -> None:
        v1, v2 = project([self.g1, self.g2])
        assert float(v1.norm() / self.g1.norm()) == pytest.approx(0.851170, abs=5e-7)
        assert float(v2.norm() / self.g2.norm()) == pytest.approx(0.851170, abs=5e-7)

    def test_unit_vectors_at_120_degrees(self) -> None:
        pair = torch.tensor([[1.0, 0, 0], [-0.5, math.sqrt(3) / 2, 0]])
        close(combine(list(pair)), [0.75, 1.299038, 0.0])

    def test_three_tasks_in_natural_order(self) -> None:
        v1, v2, v3 = project(THREE)
        close(v1, [1, 0, 0])
        close(v2, [-0.2, 0.3, -0.3])
        close(v3, [-0.3, -0.3, -0.8])
        close(combine(THREE), [0.5, 0, -1.1])

    def test_no_task_meets_itself(self) -> None:
        assert visiting_orders(3) == [[1, 2], [0, 2], [0, 1]]

    def test_three_tasks_have_eight_results_over_all_orders(self) -> None:
        seen = set()
        for choice in range(8):
            orders = [row if choice >> i & 1 else row[::-1] for i, row in enumerate(visiting_orders(3))]
            seen.add(tuple(round(float(x), 9) for x in combine(THREE, orders)))
        assert len(seen) == 8


class TestInvariants:
    @pytest.mark.parametrize("seed", range(5))
    def test_projected_gradients_are_orthogonal_to_the_original_other(self, seed: int) -> None:
        a, b = conflicting_pair(seed)
        v_a, v_b = project([a, b])
        assert float(torch.dot(v_a, b)) == pytest.approx(0, abs=1e-12)
        assert float(torch.dot(v_b, a)) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_sum_matches_the_closed_form_of_two_tasks(self, seed: int) -> None:
        a, b = conflicting_pair(seed)
        inner = torch.dot(a, b)
        torch.testing.assert_close(combine([a, b]), a + b - inner * (a / a.dot(a) + b / b.dot(b)))

    @pytest.mark.parametrize("seed", range(5))
    def test_conflict_is_reflected_into_alignment(self, seed: int) -> None:
        a, b = conflicting_pair(seed)
        assert float(cosine(*project([a, b]))) == pytest.approx(-float(cosine(a, b)), abs=1e-12)

    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
    def test_scaling_the_gradients_scales_the_result(self, scale: float) -> None:
        a, b = conflicting_pair(0)
        torch.testing.assert_close(combine([scale * a, scale * b]), scale * combine([a, b]))

    def test_agreeing_gradients_give_the_bit_equal_plain_sum(self) -> None:
        a, b = conflicting_pair(1)
        assert torch.equal(combine([a.float(), -b.float()]), a.float() - b.float())

    def test_zero_gradient_projects_nothing_and_stays_zero(self) -> None:
        a, zero = torch.tensor([1.0, -2.0]), torch.zeros(2)
        v_a, v_zero = project([a, zero])
        assert torch.equal(v_a, a)
        assert torch.equal(v_zero, zero)

    def test_second_task_without_gradient_leaves_the_first(self) -> None:
        """Oracle E: the domain loss of weight 0."""
        a = torch.tensor([1.0, -2.0])
        assert torch.equal(combine([a, torch.zeros(2)]), a)

    def test_inputs_are_left_alone(self) -> None:
        a, b = conflicting_pair(2)
        before = a.clone(), b.clone()
        project([a, b])
        assert torch.equal(a, before[0])
        assert torch.equal(b, before[1])

    def test_random_orders_are_permutations_of_the_others_and_follow_the_seed(self) -> None:
        drawn = [visiting_orders(5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert [sorted(row) for row in drawn[0]] == visiting_orders(5)


class TestModalities:
    def test_batch_granularity_projects_the_flattened_tensors(self) -> None:
        a, b = (g.view(2, 3) for g in conflicting_pair(3, 6))
        projected = project_modalities({"audio": a, "video": b})
        torch.testing.assert_close(projected["audio"].flatten(), project([a.flatten(), b.flatten()])[0])
        assert projected["video"].shape == (2, 3)

    def test_sample_granularity_projects_row_by_row(self) -> None:
        a, b = conflicting_pair(4, 4)
        rows = {"audio": torch.stack([a, a]), "video": torch.stack([b, -b])}
        projected = project_modalities(rows, granularity="sample")
        torch.testing.assert_close(projected["audio"], torch.stack([project([a, b])[0], a]))
        torch.testing.assert_close(projected["video"], torch.stack([project([a, b])[1], -b]))


def task(modalities: str = "ab", widths: tuple[int, ...] = (4, 4, 4)) -> Task:
    size = dict(zip(modalities, widths, strict=False))
    return Task(dict.fromkeys(modalities, (3,)), 3, 1, lambda name, shape: TanhEncoder(shape, size[name]))


def prepare(modalities: str = "ab", **options: Any) -> tuple[PCGrad, Context, Batch]:
    """Return a method, a context of gradient descent with rate 1, and a batch of conflicting losses."""
    method = PCGrad(PCGrad.Options(**options), task(modalities))
    torch.manual_seed(0)
    model = method.build()
    for m, head in model.unimodal_heads.items():
        head.weight.data.copy_(-model.head.weight.data[:, model.fusion.slices[m]])  # type: ignore[operator]
    part = Part.from_tensors({m: torch.randn(6, 3) for m in modalities}, torch.randint(3, (6,)))
    return method, context(method, model, part, 6), next(part.batches(6))


def gradients(before: MultimodalModel, after: MultimodalModel, prefix: str) -> Tensor:
    """Return what was subtracted from the parameters of that name."""
    new = dict(after.named_parameters())
    return flatten([p - new[name] for name, p in before.named_parameters() if name.startswith(prefix)]).detach()


def gradient_of(loss: Tensor, model: MultimodalModel, prefix: str) -> Tensor:
    values = [p for name, p in model.named_parameters() if name.startswith(prefix)]
    return flatten(torch.autograd.grad(loss, values, retain_graph=True))


class TestStep:
    @pytest.mark.parametrize("granularity", ["batch", "sample"])
    def test_projected_feature_gradients_enter_the_encoders(self, granularity: str) -> None:
        method, ctx, batch = prepare(granularity=granularity)
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        features = before.encode(batch.inputs)
        loss = functional.cross_entropy(before.classify(features), batch.labels)
        raw = dict(zip(features, torch.autograd.grad(loss, list(features.values()), retain_graph=True), strict=True))
        projected = project_modalities(raw, granularity=granularity)  # type: ignore[arg-type]
        assert not torch.equal(projected["a"], raw["a"])
        for m in "ab":
            expected = gradient_of((features[m] * projected[m].detach()).sum(), before, f"encoders.{m}.")
            torch.testing.assert_close(gradients(before, ctx.model, f"encoders.{m}."), expected)
        torch.testing.assert_close(gradients(before, ctx.model, "head."), gradient_of(loss, before, "head."))

    def test_losses_are_combined_on_each_encoder_and_heads_keep_their_own(self) -> None:
        method, ctx, batch = prepare(tasks="losses")
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        prediction = before.predict(batch.inputs)
        fused = functional.cross_entropy(prediction.logits, batch.labels)
        torch.testing.assert_close(gradients(before, ctx.model, "head."), gradient_of(fused, before, "head."))
        for m, logits in prediction.unimodal.items():
            unimodal = functional.cross_entropy(logits, batch.labels)
            pair = [gradient_of(loss, before, f"encoders.{m}.") for loss in (fused, unimodal)]
            assert float(torch.dot(*pair)) < 0
            torch.testing.assert_close(gradients(before, ctx.model, f"encoders.{m}."), combine(pair))
            head = f"unimodal_heads.{m}."
            torch.testing.assert_close(gradients(before, ctx.model, head), gradient_of(unimodal, before, head))

    @pytest.mark.parametrize(("tasks", "passes"), [("modality", Passes(1, 1)), ("losses", Passes(1, 2))])
    def test_passes_are_those_declared(self, tasks: str, passes: Passes) -> None:
        method, ctx, batch = prepare(tasks=tasks)
        counter = PassCounter(("a", "b"))
        counter.watch(ctx.model.encoders)
        method.step(batch, ctx)
        assert counter.passes(6, 1) == method.expected_passes(ctx.plan) == passes

    def test_three_modalities_meet_in_an_order_that_follows_the_method_axis(self) -> None:
        found = []
        for seed in (0, 0, 1, 2, 3):
            method, ctx, batch = prepare("abc")
            before = copy.deepcopy(ctx.model)
            ctx.generator.manual_seed(seed)
            method.step(batch, ctx)
            found.append(gradients(before, ctx.model, "encoders."))
        assert torch.equal(found[0], found[1])
        assert not all(torch.equal(found[0], other) for other in found[2:])


class TestOptions:
    def test_unequal_widths_are_refused_between_modalities_and_taken_between_losses(self) -> None:
        unequal = task("ab", (4, 5))
        assert PCGrad.refuses(PCGrad.Options(tasks="losses"), unequal) is None
        reason = PCGrad.refuses(PCGrad.Options(), unequal)
        assert reason is not None
        assert "found {'a': 4, 'b': 5}" in reason
        assert "tasks=losses" in reason

    def test_samples_are_refused_between_losses(self) -> None:
        assert PCGrad.refuses(PCGrad.Options(granularity="sample"), task()) is None
        assert "granularity=batch" in str(PCGrad.refuses(PCGrad.Options(tasks="losses", granularity="sample"), task()))

    def test_single_modality_is_refused(self) -> None:
        assert "at least 2 modalities" in str(PCGrad.refuses(PCGrad.Options(tasks="losses"), task("a")))
