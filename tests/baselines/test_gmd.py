"""GMD: worked numbers, invariants of the projection, and the step inside the loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines import pcgrad
from baselines.gmd import GMD, Merge, combine_, projection_coefficients, subsets, visiting_orders
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.diagnostics import Diagnostics, PassCounter
from benchmark.fusion import Concat, FiLM, Fusion, Sum
from benchmark.gradients import flatten, unflatten
from benchmark.method import Passes, Plan
from benchmark.task import Task
from tests.baselines.scenes import TanhEncoder, context


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, *expected: float) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=5.1e-7)


def project(stack: Tensor, orders: Tensor) -> Tensor:
    """Return the projected gradients `(S, P)`."""
    return projection_coefficients(stack @ stack.T, orders) @ stack


def combine(gradients: Sequence[Mapping[str, Tensor]], orders: Tensor, merge: Merge = "released") -> dict[str, Tensor]:
    """Return the update and leave the gradients as they are."""
    return combine_([{key: value.clone() for key, value in given.items()} for given in gradients], orders, merge)


def several(seed: int, count: int = 5, size: int = 6) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestWorkedNumbers:
    """Encoders a and v of two parameters each and a head of one; losses of both, of a, of v."""

    def losses(self) -> list[dict[str, Tensor]]:
        return [
            {"a": vector(1, 0), "v": vector(0, 1), "head": vector(1)},
            {"a": vector(-2, 1), "head": vector(1)},
            {"v": vector(1, -3), "head": vector(1)},
        ]

    def test_projected_gradients_in_natural_order(self) -> None:
        stack = torch.stack([vector(1, 0, 0, 1, 1), vector(-2, 1, 0, 0, 1), vector(0, 0, 1, -3, 1)])
        both, only_a, only_v = project(stack, visiting_orders(3, itself=True))
        close(both, 0.666667, 0.166667, 0.166667, 0.5, 1.333333)
        close(only_a, -1.666667, 1, 0, 0.333333, 1.333333)
        close(only_v, 0.666667, 0, 1, -2.333333, 1.666667)

    def test_released_merge_sums_encoders_and_averages_the_head(self) -> None:
        merged = combine(self.losses(), visiting_orders(3, itself=True))
        close(merged["a"], -0.333333, 1.166667)
        close(merged["v"], 1.166667, -1.5)
        close(merged["head"], 1.444444)

    def test_sum_merge_has_three_times_the_head(self) -> None:
        merged = combine(self.losses(), visiting_orders(3, itself=False), "sum")
        close(merged["a"], -0.333333, 1.166667)
        close(merged["v"], 1.166667, -1.5)
        close(merged["head"], 4.333333)

    def test_plain_sum_without_projection(self) -> None:
        merged = combine(self.losses(), torch.empty(3, 0, dtype=torch.int64), "sum")
        close(flatten(list(merged.values())), -1, 1, 1, -2, 3)

    def test_conflict_on_shared_parameters_gives_half_of_pcgrads_sum(self) -> None:
        pair = [vector(1, 0, 0), vector(-1 / 2, math.sqrt(3) / 2, 0)]
        merged = combine([{"w": g} for g in pair], visiting_orders(2, itself=True))["w"]
        close(merged, 0.375, 0.649519, 0)
        close(2 * merged, *pcgrad.combine(pair).tolist())

    def test_without_conflict_the_head_has_the_mean_and_an_encoder_the_sum_of_two(self) -> None:
        agreeing = [{name: value.abs() for name, value in loss.items()} for loss in self.losses()]
        merged = combine(agreeing, visiting_orders(3, itself=True))
        close(merged["a"], 3, 1)
        close(merged["v"], 1, 4)
        close(merged["head"], 1)


class TestInvariants:
    @pytest.mark.parametrize("seed", range(5))
    def test_coefficients_give_what_projecting_the_vectors_gives(self, seed: int) -> None:
        stack, generator = several(seed), torch.Generator().manual_seed(seed)
        for itself in (True, False):
            orders = visiting_orders(5, itself=itself, generator=generator)
            expected = torch.stack(pcgrad.project(list(stack), orders.tolist()))
            torch.testing.assert_close(project(stack, orders), expected)

    @pytest.mark.parametrize("seed", range(5))
    def test_meeting_itself_changes_neither_of_two_gradients(self, seed: int) -> None:
        stack = several(seed, 2)
        expected = project(stack, torch.tensor([[1], [0]]))
        assert torch.equal(project(stack, torch.tensor([[1, 0], [0, 1]])), expected)

    def test_the_first_of_three_can_meet_itself_in_conflict(self) -> None:
        angles = torch.deg2rad(vector(0, 170, 190))
        stack = torch.stack([angles.cos(), angles.sin()], dim=1)
        without, itself = (project(stack, torch.tensor([order] * 3))[0] for order in ([1, 2], [1, 2, 0]))
        assert float(without @ stack[0]) < 0
        assert float(itself @ stack[0]) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("scale", [1e-10, 1e12])
    def test_scaling_all_gradients_scales_the_update(self, scale: float) -> None:
        orders = visiting_orders(5, itself=True)
        plain = combine([{"w": g} for g in several(0)], orders)["w"]
        scaled = combine([{"w": scale * g} for g in several(0)], orders)["w"]
        torch.testing.assert_close(scaled / scale, plain)

    def test_a_zero_gradient_changes_nothing_but_the_count(self) -> None:
        pair = several(1, 2)
        with_zero = combine([{"w": g} for g in (*pair, torch.zeros(6).double())], visiting_orders(3, itself=True))
        without = combine([{"w": g} for g in pair], visiting_orders(2, itself=True))
        torch.testing.assert_close(3 * with_zero["w"], 2 * without["w"])

    def test_a_zero_that_is_present_is_averaged_and_a_missing_one_is_not(self) -> None:
        orders = visiting_orders(2, itself=True)
        present = combine([{"w": vector(4, 2), "u": vector(1)}, {"w": vector(0, 0), "u": vector(1)}], orders)
        missing = combine([{"w": vector(4, 2), "u": vector(1)}, {"u": vector(1)}], orders)
        close(present["w"], 2, 1)
        close(missing["w"], 4, 2)

    def test_orders_are_permutations_that_follow_the_generator(self) -> None:
        drawn = [visiting_orders(6, itself=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert torch.equal(drawn[0].sort(1).values, torch.arange(6).expand(6, 6))
        without = visiting_orders(6, itself=False, generator=torch.Generator().manual_seed(0))
        assert without.sort(1).values.tolist() == visiting_orders(6, itself=False).tolist()
        assert visiting_orders(3, itself=False).tolist() == [[1, 2], [0, 2], [0, 1]]

    def test_four_modalities_have_fifteen_subsets_the_largest_first(self) -> None:
        found = subsets("abcd")
        assert [len(subset) for subset in found] == [4] + [3] * 4 + [2] * 6 + [1] * 4
        assert len(set(found)) == 15
        assert subsets("ab") == [("a", "b"), ("a",), ("b",)]
        assert subsets("abc", "single") == [("a",), ("b",), ("c",)]


class Shifted(Concat):
    """Adds two parameters to the joined features: one gradient for both."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__(widths)
        self.one, self.two = (torch.nn.Parameter(torch.zeros(self.width)) for _ in range(2))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return super().forward(features) + (self.one + self.two)


IN_CONFLICT = (65, 204)
"""Seeds that between them have conflicting subset gradients for every fusion and number of modalities below."""


def prepare(
    modalities: str = "ab", fusion: type[Fusion] = Concat, seed: int = IN_CONFLICT[0], **options: Any
) -> tuple[GMD, Context, Batch]:
    """Return a method, a context of plain gradient descent with learning rate 1, and a batch."""
    widths = {"a": 4, "b": 5, "c": 3}
    task = Task(dict.fromkeys(modalities, (3,)), 3, 1, lambda name, shape: TanhEncoder(shape, widths[name]), fusion)
    method = GMD(GMD.Options(**options), task)
    torch.manual_seed(seed)
    model = method.build()
    with torch.no_grad():
        model.head.weight.mul_(10)
    part = Part.from_tensors({m: torch.randn(6, 3) for m in modalities}, torch.randint(3, (6,)))
    diagnostics = Diagnostics(tuple(modalities), torch.device("cpu"))
    return method, context(method, model, part, 6, diagnostics=diagnostics), next(part.batches(6))


class TestStep:
    @pytest.mark.parametrize("fusion", [Concat, Sum, FiLM, Shifted])
    @pytest.mark.parametrize("modalities", ["ab", "abc"])
    @pytest.mark.parametrize("options", [{}, {"merge": "sum"}, {"subsets": "single"}])
    def test_update_is_that_of_subset_gradients_taken_one_by_one(
        self, fusion: type[Fusion], modalities: str, options: dict[str, Any]
    ) -> None:
        conflict = [self.is_as_taken_one_by_one(modalities, fusion, seed, options) for seed in IN_CONFLICT]
        assert any(conflict)

    def is_as_taken_one_by_one(self, modalities: str, fusion: type[Fusion], seed: int, options: dict[str, Any]) -> bool:
        """Compare a step with its definition; return whether gradients were in conflict."""
        method, ctx, batch = prepare(modalities, fusion, seed, **options)
        before = copy.deepcopy(ctx.model)
        generator = torch.Generator()
        generator.set_state(ctx.generator.get_state())
        method.step(batch, ctx)
        parameters = dict(before.named_parameters())
        rows, present = [], []
        for subset in subsets(modalities, options.get("subsets", "all")):
            encoded = before.encode(batch.inputs)
            shown = {m: z if m in subset else torch.zeros_like(z) for m, z in encoded.items()}
            loss = functional.cross_entropy(before.head(before.fusion(shown)), batch.labels)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            present.append([g is not None for g in found])
            pairs = zip(found, parameters.values(), strict=True)
            rows.append(flatten([torch.zeros_like(p) if g is None else g for g, p in pairs]))
        released = options.get("merge") != "sum"
        orders = visiting_orders(len(rows), itself=released, generator=generator)
        projected = torch.stack(pcgrad.project(rows, orders.tolist())).sum(0)
        everywhere = [released and all(column) for column in zip(*present, strict=True)]
        expected = unflatten(projected, list(parameters.values()))
        for name, gradient, shared in zip(parameters, expected, everywhere, strict=True):
            moved = parameters[name] - ctx.model.get_parameter(name)
            torch.testing.assert_close(moved, gradient / len(rows) if shared else gradient, rtol=1e-4, atol=1e-5)
            assert not shared or not name.startswith("encoders.")
        return not torch.allclose(projected, torch.stack(rows).sum(0), rtol=1e-3)

    def test_diagnostics_see_the_gradient_of_the_whole_loss_once(self) -> None:
        method, ctx, batch = prepare()
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        features = {m: z.detach().requires_grad_() for m, z in before.encode(batch.inputs).items()}
        losses = [
            functional.cross_entropy(before.classify({m: features[m] for m in subset}), batch.labels)
            for subset in subsets("ab")
        ]
        torch.stack(losses).sum().backward()
        assert ctx._diagnostics is not None
        energies = {m: float(z.grad.square().sum()) for m, z in features.items() if z.grad is not None}
        assert ctx._diagnostics.end_epoch()["energy"] == pytest.approx(energies)
        assert ctx.mean_loss() == pytest.approx(sum(loss.item() for loss in losses))

    @pytest.mark.parametrize(
        ("modalities", "options", "backward"),
        [("ab", {}, 2), ("abc", {}, 4), ("abc", {"merge": "sum"}, 4), ("abc", {"subsets": "single"}, 1)],
    )
    def test_an_encoder_is_back_propagated_once_for_every_subset_that_holds_it(
        self, modalities: str, options: dict[str, Any], backward: int
    ) -> None:
        method, ctx, batch = prepare(modalities, **options)
        counter = PassCounter(tuple(modalities))
        counter.watch(ctx.model.encoders)
        method.step(batch, ctx)
        assert counter.passes(6, 1) == method.expected_passes(ctx.plan) == Passes(1, backward)

    def test_two_modalities_cost_five_thirds_of_joint_training_and_three_cost_three_times(self) -> None:
        assert GMD.info.passes.relative == pytest.approx(5 / 3)
        assert prepare("abc")[0].expected_passes(Plan(1, 6, 6, ("a", "b", "c"), 6)).relative == 3

    def test_orders_follow_the_method_axis(self) -> None:
        found = []
        for seed in (0, 0, 1, 2, 3):
            method, ctx, batch = prepare("abc")
            ctx.generator.manual_seed(seed)
            method.step(batch, ctx)
            found.append(flatten([p.detach() for p in ctx.model.parameters()]))
        assert torch.equal(found[0], found[1])
        assert not all(torch.equal(found[0], other) for other in found[2:])


class TestSubsetLogits:
    def test_logits_of_both_are_those_of_each_minus_the_bias(self) -> None:
        _, ctx, batch = prepare()
        features = ctx.model.encode(batch.inputs)
        alone = [ctx.model.classify({m: features[m]}) for m in "ab"]
        torch.testing.assert_close(ctx.model.classify(features), alone[0] + alone[1] - ctx.model.head.bias)

    def test_the_loss_of_one_modality_does_not_see_the_other_one(self) -> None:
        method, ctx, batch = prepare()
        noisy = Batch(batch.inputs | {"b": torch.randn(6, 3)}, batch.labels, batch.index)
        clean, noise = (method.losses(ctx.forward(x), x, ctx) for x in (batch, noisy))
        assert list(clean) == ["a+b", "a", "b"]
        assert torch.equal(clean["a"], noise["a"])
        assert not torch.equal(clean["b"], noise["b"])
        assert not torch.equal(clean["a+b"], noise["a+b"])

    def test_the_loss_of_all_is_joint_trainings_and_so_is_the_prediction(self) -> None:
        method, ctx, batch = prepare("abc")
        forward = ctx.forward(batch)
        loss = method.losses(forward, batch, ctx)["a+b+c"]
        assert torch.equal(loss, functional.cross_entropy(forward.logits, batch.labels))
        assert torch.equal(method.predict(ctx.model, batch).logits, forward.logits)

    def test_one_modality_is_refused(self) -> None:
        task = Task({"a": (3,)}, 3, 1, lambda _, shape: TanhEncoder(shape, 4))
        assert "at least 2 modalities" in str(GMD.refuses(GMD.Options(), task))
