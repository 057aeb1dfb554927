"""PMR: the worked numbers, the prototypes and their refreshes, and what the losses reach."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from baselines.pmr import (
    PMR,
    class_means,
    coefficients,
    entropy_coefficients,
    mean_entropy,
    prototype_logits,
    refresh_sample,
    refresh_size,
    refreshed,
)
from benchmark.context import Context, Run
from benchmark.data import Part
from benchmark.method import Method, Plan, summed_confidences
from benchmark.model import same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import Fit, fit, initialised
from tests.baselines.scenes import NormedEncoder, random_part, resumes

LABELS = torch.tensor([0, 1, 2])


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


FEATURES = {"a": _double([[1, 0], [0, 2], [1, 1]]), "v": _double([[0.5, 0.5], [0, 1], [2, 0]])}
PROTOTYPES = {"a": _double([[1, 0.5], [0, 1.5], [2, 2]]), "v": _double([[0, 0], [0, 2], [1, 1]])}
LOGITS = {name: prototype_logits(FEATURES[name], PROTOTYPES[name]) for name in FEATURES}


def close(found: Tensor | float, expected: object) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64).detach(), _double(expected), rtol=0, atol=5.1e-7
    )


class TestWorkedNumbers:
    def test_distances(self) -> None:
        close(-LOGITS["a"], [[0.5, 1.802776, 2.236068], [1.802776, 0.5, 2.0], [0.5, 1.118034, 1.414214]])
        close(-LOGITS["v"], [[0.707107, 1.581139, 0.707107], [1, 1, 1], [2, 2.828427, 1.414214]])

    def test_scores_and_their_ratio(self) -> None:
        score = summed_confidences(LOGITS, LABELS)
        close(score, [1.566183, 1.302646])
        close(score[0] / score[1], 1.202309)

    def test_prototypical_losses(self) -> None:
        close(functional.cross_entropy(LOGITS["a"], LABELS), 0.783018)
        close(functional.cross_entropy(LOGITS["v"], LABELS), 0.856305)

    def test_coefficients(self) -> None:
        score = summed_confidences(LOGITS, LABELS)
        close(coefficients(score), [0, 1])
        close(coefficients(score, "clip"), [0, 0.202309])
        close(entropy_coefficients(score, coefficients(score, "clip")), [0.202309, 0])

    def test_entropies(self) -> None:
        close(mean_entropy(LOGITS["a"]), 0.904001)
        close(mean_entropy(LOGITS["v"]), 1.030669)

    @pytest.mark.parametrize(
        ("options", "added"),
        [
            ({"alpha": 2}, 1.712611),
            ({"alpha": 2, "coefficient": "clip"}, 0.346477),
            ({"alpha": 0, "coefficient": "clip", "entropy": 0.01}, -0.001829),
        ],
    )
    def test_added_loss(self, options: dict[str, Any], added: float) -> None:
        losses = _losses(FEATURES, **options)
        close(torch.stack([value for name, value in losses.items() if name != "fused"]).sum(), added)

    @pytest.mark.parametrize(("momentum", "expected"), [(0, (3, -2)), (0.2, (2.6, -1.2)), (0.5, (2, 0))])
    def test_moving_average(self, momentum: float, expected: tuple[float, float]) -> None:
        close(refreshed(_double([1, 2]), _double([3, -2]), momentum), expected)


def _losses(features: dict[str, Tensor], epoch: int = 0, **options: Any) -> dict[str, Tensor]:
    """Return the losses on the worked example, with a head that has no say."""
    method = PMR(PMR.Options(**options), _task())
    method.prototypes, method.classes = PROTOTYPES, LABELS
    ctx: Any = SimpleNamespace(epoch=epoch, epochs=10, note=lambda *_: None)
    forward: Any = SimpleNamespace(features=features, logits=torch.zeros(3, 3, dtype=torch.float64))
    return method.losses(forward, SimpleNamespace(labels=LABELS), ctx)  # type: ignore[arg-type]


class TestInvariants:
    def test_a_prototypical_loss_reaches_its_own_modality_alone_and_is_no_function_of_beta(self) -> None:
        leaves = {name: values.clone().requires_grad_() for name, values in FEATURES.items()}
        loss = _losses(leaves, coefficient="clip")["prototypes v"]
        alone = functional.cross_entropy(prototype_logits(leaves["v"], PROTOTYPES["v"]), LABELS)
        found = torch.autograd.grad(loss, [leaves["a"], leaves["v"]], allow_unused=True)
        (expected,) = torch.autograd.grad(alone, leaves["v"])
        assert [gradient is not None for gradient in found] == [False, True]
        torch.testing.assert_close(found[1], coefficients(summed_confidences(LOGITS, LABELS), "clip")[1] * expected)

    @pytest.mark.parametrize("coefficient", ["binary", "clip"])
    def test_swapped_modalities_have_swapped_coefficients(self, coefficient: Any) -> None:
        score = summed_confidences(LOGITS, LABELS)
        beta = coefficients(score, coefficient)
        assert torch.equal(coefficients(score.flip(0), coefficient), beta.flip(0))
        assert torch.equal(entropy_coefficients(score.flip(0), beta.flip(0)), beta)

    @given(st.lists(st.floats(0, 64), min_size=2, max_size=5))
    def test_the_best_modality_gets_none_and_weaker_ones_never_less(self, values: list[float]) -> None:
        score = _double(values)
        binary, clip = coefficients(score), coefficients(score, "clip")
        assert not binary[score.argmax()]
        assert ((clip >= 0) & (clip <= binary)).all()
        assert (clip[score.argsort(descending=True)].diff() >= 0).all()

    def test_entropy_of_the_best_of_three_is_weighted_by_the_mean_of_the_others(self) -> None:
        score = _double([2, 3, 2.4])
        close(coefficients(score, "clip"), [0.5, 0, 0.25])
        close(entropy_coefficients(score, coefficients(score, "clip")), [0, 0.375, 0])

    def test_a_feature_on_its_prototype_has_a_finite_gradient(self) -> None:
        features = PROTOTYPES["a"].clone().requires_grad_()
        loss = functional.cross_entropy(prototype_logits(features, PROTOTYPES["a"]), LABELS)
        (gradient,) = torch.autograd.grad(loss, features)
        assert gradient.isfinite().all()

    def test_entropy_is_that_of_the_softmax_and_so_is_its_gradient(self) -> None:
        logits = LOGITS["v"].clone().requires_grad_()
        probabilities = logits.softmax(1)
        expected = -(probabilities * probabilities.log()).sum(1).mean()
        gradients = [torch.autograd.grad(value, logits)[0] for value in (mean_entropy(logits), expected)]
        torch.testing.assert_close(*gradients)


class TestRefreshSample:
    @pytest.mark.parametrize(
        ("samples", "size"), [(6400, 640), (6399, 640), (1279, 64 * 2), (1216, 64), (100, 64), (40, 40)]
    )
    def test_size_is_a_tenth_of_the_batches_and_at_least_one(self, samples: int, size: int) -> None:
        assert refresh_size(samples, 64) == size

    @given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 9))
    def test_it_has_every_class_and_no_sample_twice(self, labels: list[int], size: int, seed: int) -> None:
        drawn = refresh_sample(torch.tensor(labels), size, torch.Generator().manual_seed(seed)).tolist()
        assert {labels[position] for position in drawn} == set(labels)
        assert len(drawn) == len(set(drawn)) == max(min(size, len(labels)), len(set(labels)))

    def test_beyond_one_of_each_class_every_sample_is_as_likely(self) -> None:
        labels, generator = torch.tensor([0] * 4 + [1]), torch.Generator().manual_seed(0)
        counts = torch.stack([refresh_sample(labels, 3, generator).bincount(minlength=5) for _ in range(2000)]).sum(0)
        assert counts[4] == 2000
        assert counts[:4].tolist() == pytest.approx([1000] * 4, abs=100)

    def test_class_means(self) -> None:
        features = _double([[1, 2], [3, 4], [5, 0]])
        close(class_means(features, torch.tensor([1, 0, 1]), 2), [[3, 4], [3, 1]])


SIZES = {"a": 4, "v": 3, "t": 2}
EPOCHS = 5
PROTOCOL = Protocol(epochs=EPOCHS, batch_size=8, optimizer=Optimizer(lr=0.05))


PARTS = {"train": random_part(SIZES, 90, 0), "val": random_part(SIZES, 12, 1), "test": random_part(SIZES, 12, 2)}


def _task(modalities: str = "av") -> Task:
    return Task(
        {name: (SIZES[name],) for name in modalities}, 3, EPOCHS, lambda _, shape: NormedEncoder(shape, 2 * shape[0])
    )


def _context(method: Method, train: Part = PARTS["train"]) -> Context:
    plan = Plan(EPOCHS, len(train), 12, method.task.modalities, 8)
    model = initialised(method, 0).train()
    return Context(Run(method.task, plan, train, PARTS["val"], 0, PROTOCOL), model, method.parameters(model))


class TestRefresh:
    def test_it_leaves_the_model_its_mode_and_the_order_of_training(self) -> None:
        method = PMR(PMR.Options(), _task())
        ctx, untouched = _context(method), _context(method)
        method.start_epoch(ctx)
        assert ctx.model.training
        assert same_parameters(ctx.model, untouched.model)
        assert all(torch.equal(a.index, b.index) for a, b in zip(ctx.batches(), untouched.batches(), strict=True))

    def test_prototypes_are_class_means_of_eight_samples_in_evaluation_mode(self) -> None:
        method = PMR(PMR.Options(), _task())
        ctx, same = _context(method), _context(method)
        method.start_epoch(ctx)
        chosen = refresh_sample(PARTS["train"].labels, 8, same.generator)
        assert len(chosen) == 8
        for batch, forward in same.evaluate(PARTS["train"].subset(chosen)):
            for name, values in forward.features.items():
                torch.testing.assert_close(method.prototypes[name], class_means(values, batch.labels, 3))

    def test_momentum_acts_from_the_third_refresh_on(self) -> None:
        found: dict[float, list[Tensor]] = {}
        for momentum in (0.0, 0.5):
            method = PMR(PMR.Options(momentum=momentum, end=1), _task())
            ctx = _context(method)
            for epoch in range(4):
                ctx.start(epoch)
                method.start_epoch(ctx)
                found.setdefault(momentum, []).append(method.prototypes["a"])
        fresh, mixed = found.values()
        assert torch.equal(mixed[0], fresh[0])
        assert torch.equal(mixed[1], fresh[1])
        torch.testing.assert_close(mixed[2], (fresh[1] + fresh[2]) / 2)
        torch.testing.assert_close(mixed[3], (mixed[2] + fresh[3]) / 2)

    def test_a_class_without_training_samples_has_no_prototype(self) -> None:
        part = PARTS["train"]
        method = PMR(PMR.Options(), _task())
        ctx = _context(method, part.subset((part.labels != 1).nonzero().squeeze(1)))
        method.start_epoch(ctx)
        assert method.classes.tolist() == [0, 2]
        assert method.prototypes["a"].shape == (2, 8)
        batch = next(ctx.batches())
        losses = method.losses(ctx.forward(batch), batch, ctx)
        assert all(value.isfinite() for value in losses.values())
        assert any(value > 0 for name, value in losses.items() if name != "fused")


class TestMethod:
    def test_the_default_window_is_the_official_one(self) -> None:
        method = PMR(PMR.Options(), _task())
        assert [epoch for epoch in range(100) if method.acts(epoch, 100)] == list(range(71))
        assert [epoch for epoch in range(15) if method.acts(epoch, 15)] == list(range(11))

    def test_entropy_acts_in_the_first_tenth(self) -> None:
        assert "entropy a" in _losses(FEATURES, 0, entropy=0.64)
        assert "entropy a" not in _losses(FEATURES, 1, entropy=0.64)

    def test_outside_the_window_the_loss_is_the_fused_one(self) -> None:
        assert list(_losses(FEATURES, 8, entropy=0.64, entropy_end=1)) == ["fused"]

    @pytest.mark.parametrize(
        ("modalities", "options", "refreshes"), [("av", {}, 4), ("avt", {"end": 1}, 5), ("av", {"end": 0}, 1)]
    )
    def test_counted_passes_are_those_expected(self, modalities: str, options: dict[str, Any], refreshes: int) -> None:
        method = PMR(PMR.Options(**options), _task(modalities))
        counted = fit(method, PARTS, PROTOCOL, 0).passes
        for passes in (counted, method.expected_passes(Plan(EPOCHS, 90, 12, method.task.modalities, 8))):
            assert passes.forward == pytest.approx(1 + 8 * refreshes / (90 * EPOCHS))
            assert passes.backward == 1

    def test_a_run_of_a_hundred_epochs_costs_two_percent_more_than_joint_training(self) -> None:
        long = PMR(PMR.Options(), _task()).expected_passes(Plan(100, 64_000, 640, ("a", "v"), 64))
        assert (long.forward, long.relative) == pytest.approx((1.071, 1.071 / 3 + 2 / 3))

    def test_an_interrupted_run_with_momentum_ends_with_the_same_metrics(self, tmp_path: Path) -> None:
        options = PMR.Options(momentum=0.5, end=1, coefficient="clip", entropy=0.64, entropy_end=1)

        def run(**settings: Any) -> Fit:
            return fit(PMR(options, _task()), PARTS, PROTOCOL, 0, **settings)

        resumes(run, tmp_path / "run.ckpt", 2)

    def test_the_record_keeps_how_often_a_modality_was_helped(self) -> None:
        records = fit(PMR(PMR.Options(), _task()), PARTS, PROTOCOL, 0).epochs
        assert sum(records[0]["notes"].values()) == pytest.approx(1)
        assert records[-1]["notes"] == {}

    @pytest.mark.parametrize(
        "options", [{"alpha": -1}, {"momentum": 1}, {"end": 1.1}, {"entropy": -0.1}, {"coefficient": "soft"}]
    )
    def test_bad_options_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            PMR.Options(**options)

    def test_one_modality_is_refused(self) -> None:
        assert "at least 2 modalities" in str(PMR.refuses(PMR.Options(), _task("a")))
