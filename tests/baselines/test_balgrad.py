"""BalGrad: worked numbers, invariants, and the step inside the loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.balgrad import BalGrad, Scope, combine_, divergences, opposition, shares
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.diagnostics import PassCounter
from benchmark.gradients import flatten
from benchmark.method import Passes
from benchmark.model import MultimodalModel
from benchmark.task import Task
from tests.baselines.scenes import TanhEncoder, context

Encoders = dict[str, dict[str, Tensor]]
Z_V, Z_L = [2.0, 0.0, -1.0], [0.0, 1.0, 0.0]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: list[float], tolerance: float = 5.1e-7) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=found.dtype), rtol=0, atol=tolerance)


def leaves(*rows: list[float]) -> dict[str, Tensor]:
    return {
        m: torch.tensor([row], dtype=torch.float64, requires_grad=True) for m, row in zip("vlx", rows, strict=False)
    }


def random_gradients(seed: int) -> tuple[Encoders, Encoders, Encoders]:
    """Return the gradients of three losses on two encoders with two parameter tensors each."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"v": {"weight": (3, 2), "bias": (3,)}, "l": {"weight": (2, 2), "bias": (2,)}}

    def draw() -> Encoders:
        return {
            m: {p: torch.randn(size, dtype=torch.float64, generator=generator) for p, size in tensors.items()}
            for m, tensors in sizes.items()
        }

    return draw(), draw(), draw()


def scaled(factor: float, gradients: Encoders) -> Encoders:
    return {m: {p: factor * g for p, g in tensors.items()} for m, tensors in gradients.items()}


def stacked(gradients: Encoders) -> Tensor:
    return flatten([value for tensors in gradients.values() for value in tensors.values()])


def combine(fused: Encoders, unimodal: Encoders, divergence: Encoders, scope: Scope = "stacked") -> Encoders:
    """Return the updates and leave the gradients as they are."""
    copied = {m: {p: g.clone() for p, g in tensors.items()} for m, tensors in fused.items()}
    return combine_(copied, unimodal, divergence, scope)


class TestWorkedNumbers:
    def test_shares_of_the_unimodal_losses(self) -> None:
        found = shares({"v": torch.tensor(1.2), "l": torch.tensor(0.3)})
        assert [float(found[m]) for m in "vl"] == pytest.approx([0.8, 0.2])

    def test_projection_of_the_task_gradient_over_both_encoders(self) -> None:
        factors = shares({"v": vector(1.2)[0], "l": vector(0.3)[0]})
        divergence = {"v": {"w": factors["v"] * vector(1, 0)}, "l": {"w": factors["l"] * vector(0, 2)}}
        close(stacked(divergence), [0.8, 0, 0, 0.4])
        task = {"v": {"w": vector(-3, 1)}, "l": {"w": vector(0, 1)}}
        assert float(stacked(task).dot(stacked(divergence))) == pytest.approx(-2.0)
        share = opposition([task["v"]["w"], task["l"]["w"]], [divergence["v"]["w"], divergence["l"]["w"]])
        projected = stacked(task) - share * stacked(divergence)
        close(projected, [-1, 1, 0, 2])
        assert float(projected.dot(stacked(divergence))) == pytest.approx(0)
        zero = {m: {"w": vector(0, 0)} for m in "vl"}
        close(stacked(combine(task, zero, divergence)), [-0.2, 1, 0, 2.4])

    def test_divergences_and_their_gradient(self) -> None:
        logits = leaves(Z_V, Z_L)
        found = divergences(logits)
        assert found["v"].item() == pytest.approx(0.982577, abs=5e-7)
        assert found["l"].item() == pytest.approx(0.912983, abs=5e-7)
        found["v"].backward()
        gradient = logits["v"].grad
        assert gradient is not None
        close(gradient[0], [0.631853, -0.461922, -0.169931])
        torch.testing.assert_close(gradient, logits["v"].softmax(1) - logits["l"].softmax(1))
        assert logits["l"].grad is None


class TestDivergences:
    def test_attached_moves_both_modalities(self) -> None:
        logits = leaves(Z_V, Z_L)
        found = divergences(logits, attached=True)
        for loss, detached in zip(found.values(), divergences(logits).values(), strict=True):
            assert torch.equal(loss, detached)
            assert all(
                float(g.abs().max()) > 0.01 for g in torch.autograd.grad(loss, list(logits.values()), retain_graph=True)
            )

    def test_identical_predictions_cause_no_gradient(self) -> None:
        logits = leaves(Z_V, [z + 5 for z in Z_V])
        for loss, values in zip(divergences(logits).values(), logits.values(), strict=True):
            close(torch.autograd.grad(loss, values)[0][0], [0.0, 0.0, 0.0], 1e-12)

    def test_swapping_the_modalities_swaps_the_divergences(self) -> None:
        one, other = divergences(leaves(Z_V, Z_L)), divergences(leaves(Z_L, Z_V))
        assert one["v"].item() == other["l"].item()
        assert one["l"].item() == other["v"].item()

    def test_third_modality_is_measured_against_the_mean_prediction_of_the_others(self) -> None:
        logits = leaves(Z_V, Z_L, [1.0, 1.0, -2.0])
        target = (logits["v"].softmax(1) + logits["l"].softmax(1)) / 2
        expected = (target * (target / logits["x"].softmax(1)).log()).sum()
        torch.testing.assert_close(divergences(logits)["x"], expected)

    def test_mean_over_the_batch(self) -> None:
        logits = leaves(Z_V, Z_L)
        doubled = {m: torch.cat([values, values]) for m, values in logits.items()}
        torch.testing.assert_close(divergences(doubled), divergences(logits))

    def test_extreme_logits_stay_finite(self) -> None:
        found = divergences(leaves([1e4, 0, 0], [0, 1e4, 0]))
        assert all(math.isfinite(value.item()) for value in found.values())


class TestShares:
    def test_losses_of_zero_share_equally(self) -> None:
        zero = torch.zeros(())
        for of_others in (False, True):
            found = shares({"v": zero, "l": zero, "x": zero}, of_others=of_others)
            assert [float(value) for value in found.values()] == pytest.approx([1 / 3] * 3)

    def test_others_are_the_swapped_shares_of_two_and_sum_to_one_for_three(self) -> None:
        values = {"v": torch.tensor(1.2), "l": torch.tensor(0.3)}
        swapped = shares(values, of_others=True)
        assert [float(swapped[m]) for m in "vl"] == pytest.approx([0.2, 0.8])
        three = shares(values | {"x": torch.tensor(0.5)}, of_others=True)
        assert [float(value) for value in three.values()] == pytest.approx([0.2, 0.425, 0.375])

    def test_no_gradient_passes(self) -> None:
        assert not shares({"v": torch.tensor(1.0, requires_grad=True), "l": torch.tensor(2.0)})["v"].requires_grad


class TestCombine:
    @pytest.mark.parametrize("scope", ["stacked", "encoder"])
    @pytest.mark.parametrize("seed", range(6))
    def test_projected_task_gradient_never_opposes_the_divergence(self, seed: int, scope: Any) -> None:
        fused, unimodal, divergence = random_gradients(seed)
        update = combine(fused, unimodal, divergence, scope)
        for group in [["v", "l"]] if scope == "stacked" else [["v"], ["l"]]:
            before, rest, pull, both = (
                stacked({m: source[m] for m in group}) for source in (fused, unimodal, divergence, update)
            )
            after = both - rest - pull
            assert float(after.dot(pull)) == pytest.approx(max(0.0, float(before.dot(pull))), abs=1e-12)

    def test_agreement_is_the_bit_equal_plain_sum(self) -> None:
        fused, unimodal, _ = random_gradients(0)
        expected = stacked(fused) + stacked(unimodal) + stacked(scaled(0.3, fused))
        assert torch.equal(stacked(combine(fused, unimodal, scaled(0.3, fused))), expected)

    def test_zero_divergence_leaves_fused_and_unimodal(self) -> None:
        fused, unimodal, divergence = random_gradients(1)
        assert torch.equal(stacked(combine(fused, unimodal, scaled(0, divergence))), stacked(fused) + stacked(unimodal))

    @pytest.mark.parametrize(("direction", "left"), [(1.0, 2.0), (-1.0, 1.0)])
    def test_divergence_itself_is_never_projected(self, direction: float, left: float) -> None:
        *_, divergence = random_gradients(2)
        update = combine(scaled(direction, divergence), scaled(0, divergence), divergence)
        torch.testing.assert_close(stacked(update), left * stacked(divergence))

    def test_swapping_the_modalities_swaps_the_updates(self) -> None:
        gradients = random_gradients(4)
        fused, unimodal, divergence = ({"v": source["l"], "l": source["v"]} for source in gradients)
        one, other = combine(*gradients), combine(fused, unimodal, divergence)
        torch.testing.assert_close(other, {"v": one["l"], "l": one["v"]})

    def test_scopes_differ_where_only_one_encoder_is_in_conflict(self) -> None:
        fused = {"v": {"w": vector(-1, 1)}, "l": {"w": vector(3, 0)}}
        divergence = {"v": {"w": vector(1, 0)}, "l": {"w": vector(1, 0)}}
        zero = {m: {"w": vector(0, 0)} for m in "vl"}
        close(stacked(combine(fused, zero, divergence)), [0, 1, 4, 0])
        close(stacked(combine(fused, zero, divergence, "encoder")), [1, 1, 4, 0])

    def test_without_projection_it_is_the_plain_sum(self) -> None:
        fused, unimodal, divergence = random_gradients(3)
        plain = stacked(fused) + stacked(unimodal) + stacked(divergence)
        assert torch.equal(stacked(combine(fused, unimodal, divergence, "none")), plain)


def prepare(modalities: str = "ab", seed: int = 0, **options: Any) -> tuple[BalGrad, Context, Batch]:
    """Return a method, a context of gradient descent with learning rate 1, and a batch."""
    widths = dict(zip("abc", (4, 5, 6), strict=True))
    task = Task(dict.fromkeys(modalities, (3,)), 3, 1, lambda m, shape: TanhEncoder(shape, widths[m]))
    method = BalGrad(BalGrad.Options(**options), task)
    torch.manual_seed(seed)
    model = method.build()
    part = Part.from_tensors({m: torch.randn(6, 3) for m in modalities}, torch.randint(3, (6,)))
    return method, context(method, model, part, 6), next(part.batches(6))


def taken(before: MultimodalModel, after: MultimodalModel, prefix: str) -> Tensor:
    """Return what was subtracted from the parameters of that name."""
    new = dict(after.named_parameters())
    return flatten([p - new[name] for name, p in before.named_parameters() if name.startswith(prefix)]).detach()


def gradient_of(loss: Tensor, model: MultimodalModel, prefix: str) -> Tensor:
    values = [p for name, p in model.named_parameters() if name.startswith(prefix)]
    return flatten(torch.autograd.grad(loss, values, retain_graph=True, materialize_grads=True))


def factors(weights: str, losses: list[Tensor], divergence: list[Tensor], features: list[Tensor]) -> list[float]:
    """Return the factors of two modalities' divergences, written out."""
    first, second = (loss.item() for loss in losses)
    if weights == "norm":
        pairs = zip(divergence, features, strict=True)
        second, first = (float(torch.autograd.grad(k, z, retain_graph=True)[0].norm()) for k, z in pairs)
    if weights == "others":
        first, second = second, first
    return [0.5, 0.5] if weights == "equal" else [first / (first + second), second / (first + second)]


class TestStep:
    @pytest.mark.parametrize("targets", ["detached", "attached"])
    @pytest.mark.parametrize("weights", ["own", "others", "norm", "equal"])
    def test_encoders_get_all_three_gradients_and_heads_those_of_their_own_losses(
        self, weights: str, targets: str
    ) -> None:
        method, ctx, batch = prepare(weights=weights, targets=targets, unimodal_weight=0.7, divergence_weight=1.5)
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        features = before.encode(batch.inputs)
        alone = before.unimodal_logits(features)
        fused = functional.cross_entropy(before.classify(features), batch.labels)
        losses = [functional.cross_entropy(values, batch.labels) for values in alone.values()]
        pulls = list(divergences(alone, attached=targets == "attached").values())
        scale = factors(weights, losses, pulls, list(features.values()))
        unimodal = 0.7 * (losses[0] + losses[1])
        divergence = 1.5 * (scale[0] * pulls[0] + scale[1] * pulls[1])
        g_t, g_u, g_kl = (gradient_of(loss, before, "encoders.") for loss in (fused, unimodal, divergence))
        inner = min(0.0, float(g_t.dot(g_kl)))
        expected = g_t - inner / float(g_kl.dot(g_kl)) * g_kl + g_u + g_kl
        torch.testing.assert_close(taken(before, ctx.model, "encoders."), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(taken(before, ctx.model, "head."), gradient_of(fused, before, "head."))
        own = gradient_of(unimodal + divergence, before, "unimodal_heads.")
        torch.testing.assert_close(taken(before, ctx.model, "unimodal_heads."), own, rtol=1e-4, atol=1e-6)

    def test_some_first_steps_are_in_conflict_and_projection_changes_them(self) -> None:
        changed = []
        for seed in range(8):
            found = []
            for projection in ("stacked", "none"):
                method, ctx, batch = prepare(seed=seed, projection=projection)
                before = copy.deepcopy(ctx.model)
                method.step(batch, ctx)
                found.append(taken(before, ctx.model, "encoders."))
            changed.append(not torch.equal(*found))
        assert any(changed)
        assert not all(changed)

    @pytest.mark.parametrize("modalities", ["ab", "abc"])
    def test_three_encoder_backwards_and_one_forward(self, modalities: str) -> None:
        method, ctx, batch = prepare(modalities)
        counter = PassCounter(tuple(modalities))
        counter.watch(ctx.model.encoders)
        method.step(batch, ctx)
        assert counter.passes(6, 1) == method.expected_passes(ctx.plan) == Passes(1, 3)
        assert method.info.passes.relative == pytest.approx(7 / 3)

    def test_single_modality_is_refused(self) -> None:
        task = Task({"a": (3,)}, 3, 1, lambda _, shape: TanhEncoder(shape, 4))
        assert "at least 2 modalities" in str(BalGrad.refuses(BalGrad.Options(), task))
