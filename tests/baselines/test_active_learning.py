"""Active learning: worked numbers, invariants, and the three modes inside the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.active_learning import (
    ActiveLearning,
    Coalition,
    coalitions,
    contributions,
    dominance_scales,
    label_counts,
    shapley,
    spread,
)
from benchmark.context import Context
from benchmark.data import Part
from benchmark.method import Passes, Plan
from benchmark.model import same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import Fit, fit
from tests.baselines.scenes import WIDTHS, DisturbableEncoder, context, noisy_part, resumes


def matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(found: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=5.1e-7)


def embeddings(residuals: Tensor, features: Tensor) -> Tensor:
    """Return the rows `(N, C D)` that the factors stand for, class by class."""
    return torch.einsum("nc,nd->ncd", residuals, features).flatten(1)


P = matrix([0.7, 0.2, 0.1], [0.4, 0.35, 0.25])
VALUES: dict[Coalition, Tensor] = {
    frozenset(): matrix([0.34, 0.33, 0.33], [0.34, 0.33, 0.33]),
    frozenset({"1"}): matrix([0.45, 0.35, 0.2], [0.2, 0.5, 0.3]),
    frozenset({"2"}): matrix([0.5, 0.3, 0.2], [0.35, 0.4, 0.25]),
    frozenset({"1", "2"}): P,
}
FEATURES = {"1": matrix([1, -1], [0.5, 2]), "2": matrix([2, 0], [1, 1])}
PREDICTED = torch.tensor([0, 0])


class TestWorkedNumbers:
    phi = shapley(VALUES)
    shares = contributions(phi, PREDICTED)
    scales = dominance_scales(shares)
    residuals = P - functional.one_hot(PREDICTED, 3)

    def test_shapley_values_at_the_predicted_class(self) -> None:
        close(self.phi["1"][:, 0], [0.155, -0.045])
        close(self.phi["2"][:, 0], [0.205, 0.105])

    def test_contributions(self) -> None:
        close(self.shares["1"], [0.430556, 0.300000])
        close(self.shares["2"], [0.569444, 0.700000])

    def test_scales_are_one_for_the_stronger_and_twice_the_share_of_the_weaker(self) -> None:
        close(self.scales["1"], [0.861111, 0.600000])
        close(self.scales["2"], [1, 1])
        torch.testing.assert_close(self.scales["1"], 2 * self.shares["1"])

    def test_embeddings(self) -> None:
        scaled = torch.cat([self.scales[m][:, None] * FEATURES[m] for m in "12"], dim=1)
        rows = embeddings(self.residuals, scaled)
        close(
            rows,
            [
                [-0.258333, 0.258333, -0.6, 0, 0.172222, -0.172222, 0.4, 0, 0.086111, -0.086111, 0.2, 0],
                [-0.18, -0.72, -0.6, -0.6, 0.105, 0.42, 0.35, 0.35, 0.075, 0.3, 0.25, 0.25],
            ],
        )
        close(rows.norm(dim=1), [0.876141, 1.387029])

    def test_norms_of_plain_badge(self) -> None:
        rows = embeddings(self.residuals, torch.cat(list(FEATURES.values()), dim=1))
        close(rows.norm(dim=1), [0.916515, 1.845603])

    def test_thousand_of_the_14739_samples_of_kinetics_sounds_per_round(self) -> None:
        assert label_counts(14739, 1000 / 14739, 1000 / 14739, 3) == [1000, 2000, 3000]


def random_values(modalities: str, seed: int) -> dict[Coalition, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = {some: torch.randn(6, 4, generator=generator, dtype=torch.float64) for some in coalitions(modalities)}
    return {some: draw.softmax(1) for some, draw in draws.items()}


class TestInvariants:
    @pytest.mark.parametrize("modalities", ["ab", "abc", "abcd"])
    def test_shapley_values_add_up_to_what_the_features_add(self, modalities: str) -> None:
        values = random_values(modalities, 0)
        whole = torch.stack(list(shapley(values).values())).sum(0)
        torch.testing.assert_close(whole, values[frozenset(modalities)] - values[frozenset()])

    @pytest.mark.parametrize("modalities", ["ab", "abc"])
    def test_shares_sum_to_one_and_scales_lie_between_zero_and_one(self, modalities: str) -> None:
        shares = contributions(shapley(random_values(modalities, 1)), torch.tensor([0, 1, 2, 3, 0, 1]))
        scales = torch.stack(list(dominance_scales(shares).values()))
        torch.testing.assert_close(torch.stack(list(shares.values())).sum(0), torch.ones(6, dtype=torch.float64))
        assert bool(((scales >= 0) & (scales <= 1)).all())
        assert bool((scales.amax(0) == 1).all())

    def test_features_that_change_nothing_share_alike_and_are_not_scaled(self) -> None:
        shares = contributions({m: torch.zeros(2, 3) for m in "abcd"}, torch.tensor([0, 2]))
        assert all(torch.equal(share, torch.full((2,), 0.25)) for share in shares.values())
        assert all(torch.equal(scale, torch.ones(2)) for scale in dominance_scales(shares).values())

    def test_residuals_sum_to_zero_over_the_classes(self) -> None:
        close(TestWorkedNumbers.residuals.sum(1), [0, 0])


def factors(seed: int, samples: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    residuals = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return residuals, torch.randn(samples, 5, generator=generator, dtype=torch.float64)


class TestSpread:
    @pytest.mark.parametrize("seed", range(5))
    def test_longest_embedding_is_first_and_picks_are_distinct(self, seed: int) -> None:
        residuals, features = factors(seed)
        picks = spread(residuals, features, 20, torch.Generator().manual_seed(seed)).tolist()
        assert picks[0] == int(embeddings(residuals, features).norm(dim=1).argmax())
        assert len(set(picks)) == 20

    @pytest.mark.parametrize("seed", range(5))
    def test_draws_follow_squared_distances_between_the_embeddings(self, seed: int) -> None:
        residuals, features = factors(seed)
        rows = embeddings(residuals, features)
        own, expected = torch.Generator().manual_seed(seed), [int(rows.norm(dim=1).argmax())]
        for _ in range(11):
            nearest = torch.cdist(rows, rows[expected], compute_mode="donot_use_mm_for_euclid_dist").amin(1).square()
            expected.append(int(torch.multinomial(nearest, 1, generator=own)))
        assert spread(residuals, features, 12, torch.Generator().manual_seed(seed)).tolist() == expected

    def test_sample_equal_to_a_chosen_one_comes_last(self) -> None:
        residuals, features = factors(0, samples=4)
        twice = residuals.repeat(2, 1), features.repeat(2, 1)
        picks = spread(*twice, 8, torch.Generator().manual_seed(0)).tolist()
        assert {pick % 4 for pick in picks[:4]} == {0, 1, 2, 3}
        assert sorted(picks) == list(range(8))

    def test_no_more_samples_than_there_are(self) -> None:
        assert sorted(spread(*factors(0, samples=3), 9).tolist()) == [0, 1, 2]

    def test_none_asked_none_chosen(self) -> None:
        assert spread(*factors(0), 0).tolist() == []


EPOCHS, SAMPLES, VAL = 4, 50, 10
PLAN = Plan(EPOCHS, SAMPLES, VAL, ("a", "b"), 16)
BUDGET: dict[str, Any] = {"mode": "budget", "initial": 0.2, "added": 0.1, "rounds": 3}


def part(modalities: str = "ab", samples: int = SAMPLES) -> Part:
    return noisy_part(modalities, samples)


def build(modalities: str = "ab", **options: Any) -> ActiveLearning:
    task = Task(dict.fromkeys(modalities, (3,)), 3, EPOCHS, lambda name, shape: DisturbableEncoder(shape, WIDTHS[name]))
    return ActiveLearning(ActiveLearning.Options(**options), task)


def prepare(modalities: str = "ab", **options: Any) -> tuple[ActiveLearning, Context]:
    method = build(modalities, **options)
    torch.manual_seed(0)
    model = method.build()
    return method, context(method, model, part(modalities), 16, val=part(modalities, VAL), optimizer=Optimizer(lr=0.1))


def train(method: ActiveLearning, **settings: Any) -> Fit:
    protocol = Protocol(epochs=EPOCHS, batch_size=16, optimizer=Optimizer(lr=0.1))
    return fit(method, {"train": part(), "val": part(samples=VAL), "test": part()}, protocol, 0, **settings)


class TestFull:
    @pytest.mark.parametrize("modalities", ["ab", "abc"])
    def test_loss_is_the_mean_of_the_fused_and_all_unimodal_losses(self, modalities: str) -> None:
        method, ctx = prepare(modalities)
        batch = next(iter(method.batches(ctx)))
        forward = ctx.forward(batch)
        logits = [forward.logits, *forward.unimodal.values()]
        expected = torch.stack([functional.cross_entropy(z, batch.labels) for z in logits]).mean()
        torch.testing.assert_close(torch.stack(list(method.losses(forward, batch, ctx).values())).sum(), expected)

    def test_unimodal_heads_start_xavier_uniform_with_bias_001(self) -> None:
        model = prepare()[1].model
        for m, head in model.unimodal_heads.items():
            assert isinstance(head, nn.Linear)
            assert float(head.weight.detach().abs().max()) <= (6 / (WIDTHS[m] + 3)) ** 0.5
            assert torch.equal(head.bias, torch.full((3,), 0.01))

    def test_every_sample_is_trained_and_costs_what_joint_training_does(self) -> None:
        method, ctx = prepare()
        assert sum(len(batch) for batch in method.batches(ctx)) == SAMPLES
        assert train(build()).passes == build().expected_passes(PLAN) == Passes()


class TestBudget:
    def test_run_trains_on_the_labels_that_rounds_have_added(self) -> None:
        method, ctx = prepare(**BUDGET)
        method.start_epoch(ctx)
        seen = torch.cat([batch.index for batch in method.batches(ctx)])
        assert sorted(seen.tolist()) == sorted(set(method.chosen.tolist()))
        assert len(seen) == 20
        assert set(ctx.notes()) == {"validation accuracy, 10 labels", "validation accuracy, 15 labels"}

    def test_rounds_leave_the_run_and_all_random_streams_as_they_were(self) -> None:
        method, ctx = prepare(**BUDGET)
        other = prepare(**BUDGET)[1]
        state = torch.get_rng_state()
        method.start_epoch(ctx)
        assert same_parameters(ctx.model, other.model)
        assert torch.equal(torch.get_rng_state(), state)
        assert ctx.optimizer.state_dict()["state"] == {}

    def test_strategies_share_the_first_labels_and_then_differ(self) -> None:
        chosen = {}
        for strategy in ("bmmal", "badge", "random"):
            method, ctx = prepare(**BUDGET, strategy=strategy)
            method.start_epoch(ctx)
            chosen[strategy] = method.chosen.tolist()
        assert chosen["bmmal"][:10] == chosen["badge"][:10] == chosen["random"][:10]
        assert len({tuple(sorted(picks)) for picks in chosen.values()}) == 3

    def test_first_query_is_the_worked_procedure_on_the_unlabelled_samples(self) -> None:
        method, ctx = prepare(mode="budget")
        pool = torch.arange(10, 40)
        picks = method._choose(pool, 8, ctx, ctx)
        model = ctx.model.eval()
        batch = next(ctx.train.subset(pool).batches(30))
        with torch.no_grad():
            z = model.encode(batch.inputs)
            empty = {m: torch.zeros_like(values) for m, values in z.items()}
            values = {
                some: model.classify({**empty, **{m: z[m] for m in some}}).softmax(1) for some in coalitions("ab")
            }
        p = values[frozenset("ab")]
        scales = dominance_scales(contributions(shapley(values), p.argmax(1)))
        residuals = p - functional.one_hot(p.argmax(1), 3)
        rows = embeddings(residuals, torch.cat([scales[m][:, None] * z[m] for m in "ab"], dim=1))
        plain = embeddings(residuals, torch.cat(list(z.values()), dim=1))
        assert int(picks[0]) == int(pool[rows.norm(dim=1).argmax()])
        assert bool((rows.norm(dim=1) <= plain.norm(dim=1) + 1e-6).all())
        assert set(picks.tolist()) <= set(pool.tolist())

    def test_pool_that_is_used_up_ends_the_choice(self) -> None:
        method, ctx = prepare(mode="budget", initial=0.8, added=0.3, rounds=3)
        method.start_epoch(ctx)
        assert sorted(method.chosen.tolist()) == list(range(SAMPLES))

    @pytest.mark.parametrize("strategy", ["bmmal", "random"])
    def test_passes(self, strategy: str) -> None:
        method = build(**BUDGET, strategy=strategy)
        looks = 2 * VAL + (40 + 35 if strategy == "bmmal" else 0)
        expected = pytest.approx((45 / 50 + looks / (50 * EPOCHS), 45 / 50))
        for passes in (train(method).passes, method.expected_passes(PLAN)):
            assert (passes.forward, passes.backward) == expected


class TestSampler:
    def test_epoch_trains_on_another_share_each_time(self) -> None:
        method, ctx = prepare(mode="sampler", drawn=0.4)
        chosen = []
        for epoch in range(2):
            ctx.start(epoch)
            method.start_epoch(ctx)
            chosen.append(sorted(torch.cat([batch.index for batch in method.batches(ctx)]).tolist()))
        assert len(set(chosen[0])) == len(set(chosen[1])) == 20
        assert chosen[0] != chosen[1]

    def test_residuals_are_those_of_the_true_classes(self) -> None:
        method, ctx = prepare(mode="sampler", strategy="badge")
        method.start_epoch(ctx)
        batch, forward = next(ctx.evaluate(ctx.train))
        whole = torch.cat([f.logits for _, f in ctx.evaluate(ctx.train)]).softmax(1)
        residuals = whole - functional.one_hot(ctx.train.labels, 3)
        features = torch.cat([torch.cat(list(f.features.values()), 1) for _, f in ctx.evaluate(ctx.train)])
        assert int(method.chosen[0]) == int(embeddings(residuals, features).norm(dim=1).argmax())
        torch.testing.assert_close(method._factors(forward, batch.labels, ctx)[0].float(), residuals[: len(batch)])

    def test_passes(self) -> None:
        method = build(mode="sampler", drawn=0.4)
        assert train(method).passes == method.expected_passes(PLAN) == Passes(1.4, 0.4)


@pytest.mark.parametrize("options", [{}, BUDGET, {"mode": "sampler"}])
def test_interrupted_run_ends_with_the_same_metrics(options: dict[str, Any], tmp_path: Path) -> None:
    resumes(lambda **settings: train(build(**options), **settings), tmp_path / "run.ckpt", 1)
