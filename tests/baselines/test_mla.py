"""MLA: worked numbers, invariants, and the alternating step."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.mla import MLA, ConfidenceModel, alpha_at, confidence_weights, entropies, fuse, shrink_projection
from benchmark.context import Context, Run
from benchmark.data import Batch, Part
from benchmark.diagnostics import PassCounter
from benchmark.fusion import Sum
from benchmark.method import Passes, Plan
from benchmark.model import MultimodalModel
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import initialised
from tests.baselines.scenes import context, descent

FIRST = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
SECOND = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
AUDIO = torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.0, -0.5]], dtype=torch.float64)
VISUAL = torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)


def close(found: Tensor, expected: object, tolerance: float = 5.1e-7) -> None:
    torch.testing.assert_close(
        found.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


class TestProjection:
    def test_worked_projection_after_one_feature(self) -> None:
        projection = shrink_projection(eye(3), FIRST, 0.1)
        close(
            projection,
            [[0.836066, -0.327869, 0.163934], [-0.327869, 0.344262, 0.327869], [0.163934, 0.327869, 0.836066]],
        )
        close(projection @ FIRST, [0.016393, 0.032787, -0.016393])

    def test_worked_head_gradient(self) -> None:
        gradient = torch.tensor([[0.5, -1, 2], [1, 0, -1]], dtype=torch.float64)
        projected = gradient @ shrink_projection(eye(3), FIRST, 0.1)
        close(projected, [[1.073770, 0.147541, 1.426230], [0.672131, -0.655738, -0.672131]])

    def test_worked_projection_after_two_features(self) -> None:
        projection = shrink_projection(shrink_projection(eye(3), FIRST, 0.1), SECOND, 0.1)
        close(
            projection,
            [[0.822185, -0.270957, 0.262489], [-0.270957, 0.110923, -0.076207], [0.262489, -0.076207, 0.136325]],
        )

    def test_worked_outer_product_of_the_early_release_is_another_matrix(self) -> None:
        outer = torch.outer(FIRST, FIRST)
        faulty = eye(3) - outer / (0.1 + outer)
        close(faulty[0], [0.090909, -0.952381, -1.111111])
        assert float((shrink_projection(eye(3), FIRST, 0.1) - faulty).abs().max()) > 0.6

    def test_constant_alpha_gives_the_regularised_inverse_of_the_features_covariance(self) -> None:
        features = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        projection = eye(5)
        for feature in features:
            projection = shrink_projection(projection, feature, 0.3)
        torch.testing.assert_close(projection, 0.3 * torch.linalg.inv(0.3 * eye(5) + features.T @ features))

    def test_symmetric_with_eigenvalues_in_the_unit_interval_over_a_long_run_in_single_precision(self) -> None:
        generator = torch.Generator().manual_seed(1)
        mean, projection = torch.rand(16, generator=generator), torch.eye(16)
        for step in range(3000):
            feature = mean + 0.05 * torch.randn(16, generator=generator)
            projection = shrink_projection(projection, feature, alpha_at(step % 100, 100))
        assert torch.equal(projection, projection.T)
        values = torch.linalg.eigvalsh(projection.double())
        assert float(values.min()) > 0
        assert float(values.max()) <= 1

    def test_direction_never_seen_passes_unchanged_and_a_seen_one_shrinks(self) -> None:
        projection = shrink_projection(eye(3), torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64), 0.1)
        close(projection, [[1, 0, 0], [0, 0.1 / 4.1, 0], [0, 0, 1]], 1e-12)

    def test_zero_feature_protects_nothing(self) -> None:
        assert torch.equal(shrink_projection(torch.eye(4), torch.zeros(4), 0.1), torch.eye(4))

    def test_alpha_falls_from_a_tenth_towards_a_hundredth_within_an_epoch(self) -> None:
        assert [alpha_at(i, 4) for i in (0, 2, 4)] == pytest.approx([0.1, 10**-1.5, 0.01])
        assert alpha_at(3, 7) == pytest.approx(10 ** -(1 + 3 / 7))
        assert alpha_at(3, 7, start=0.2, decay=1.0) == 0.2
        assert alpha_at(5, 0) == pytest.approx(0.01)


class TestFusion:
    def test_worked_entropies_weights_and_fused_logits(self) -> None:
        close(entropies(AUDIO), [0.665573, 1.020191])
        close(entropies(VISUAL), [0.975328, 0.366594])
        logits = {"a": AUDIO, "v": VISUAL}
        weights = confidence_weights(logits)
        close(weights["a"], [0.576825, 0.342179])
        close(fuse(logits, weights), [[1.153651, 0.423175, 0], [0.171090, 1.973462, -0.171090]])

    def test_worked_weight_of_the_softmax_over_the_batch(self) -> None:
        close(confidence_weights({"a": AUDIO, "v": VISUAL}, "batch")["a"], [0.480156, 0.480156])

    def test_batch_reading_gives_single_samples_equal_weights(self) -> None:
        close(confidence_weights({"a": AUDIO[:1], "v": VISUAL[:1]}, "batch")["a"], [0.5], 1e-12)

    def test_confident_beside_flat_modality_overflows_the_official_form_and_stays_finite_here(self) -> None:
        confident = 40 * functional.one_hot(torch.arange(64) % 64, 101).float()
        logits = {"a": confident, "v": torch.zeros(64, 101)}
        gap = entropies(logits["v"], "batch")[0] - entropies(logits["a"], "batch")[0]
        assert math.isinf(float(gap.exp()))
        weights = confidence_weights(logits, "batch")
        close(weights["a"] + weights["v"], [1.0] * 64)
        assert float(weights["a"][0]) == 1

    @pytest.mark.parametrize("modalities", [1, 2, 3])
    def test_weights_are_positive_and_sum_to_one_for_every_sample(self, modalities: int) -> None:
        generator = torch.Generator().manual_seed(2)
        logits = {str(m): 3 * torch.randn(5, 4, generator=generator) for m in range(modalities)}
        stacked = torch.stack(list(confidence_weights(logits).values()))
        torch.testing.assert_close(stacked.sum(0), torch.ones(5))
        assert float(stacked.min()) > 0

    def test_certain_prediction_has_entropy_zero_and_a_flat_one_log_of_the_classes(self) -> None:
        close(entropies(torch.tensor([[500.0, 0, 0], [1, 1, 1]])), [0, math.log(3)], 1e-6)


class Linear(nn.Module):
    def __init__(self, inputs: int, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(inputs, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.linear(inputs)
        return features


def task(modalities: str = "ab", **settings: Any) -> Task:
    return Task(dict.fromkeys(modalities, (3,)), 3, 2, lambda _, shape: Linear(shape[0]), **settings)


def prepare(modalities: str = "ab", lr: float = 1.0, **options: Any) -> tuple[MLA, Context, Batch]:
    """Return a method, a context of gradient descent, and the first of five batches of six samples."""
    method = MLA(MLA.Options(**options), task(modalities))
    model = initialised(method, 0)
    generator = torch.Generator().manual_seed(3)
    inputs = {m: torch.randn(30, 3, generator=generator) + 1 for m in modalities}
    part = Part.from_tensors(inputs, torch.arange(30) % 3)
    return method, context(method, model, part, 6, optimizer=descent(lr)), next(part.batches(6))


class Recording(Context):
    """Keeps the loss of every optimiser step and the parameters after it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.losses: list[float] = []
        self.seen = [parameters(self.model)]

    def update(self, loss: Tensor) -> None:
        super().update(loss)
        self.losses.append(float(loss.detach()))
        self.seen.append(parameters(self.model))


def parameters(model: MultimodalModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


class TestWorkedAlternation:
    """Two batches of one sample, without head modification and biases."""

    samples: ClassVar = {"a": torch.tensor([[1.0, 2.0]]).double(), "v": torch.tensor([[2.0, -1.0]]).double()}
    label = torch.tensor([0])

    def start(self) -> MultimodalModel:
        shapes = {"a": (2,), "v": (2,)}
        model = MLA(MLA.Options(), Task(shapes, 2, 1, lambda _, shape: Linear(shape[0], 2))).build().double()
        with torch.no_grad():
            for name, factor in (("a", 1.0), ("v", 0.5)):
                next(model.encoders[name].parameters()).copy_(factor * eye(2))
            model.head.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
            model.head.bias.zero_()
        return model

    def by_method(self) -> Recording:
        model = self.start()
        method = MLA(MLA.Options(head_mod="none"), Task({"a": (2,), "v": (2,)}, 2, 1, lambda *_: Linear(2, 2)))
        part = Part.from_tensors(self.samples, self.label)
        settings = Optimizer(lr=0.1, momentum=0.9, weight_decay=1e-4)
        protocol = Protocol(epochs=1, batch_size=1, optimizer=settings)
        run = Run(method.task, Plan(1, 1, 1, ("a", "v"), 1), part, part, 0, protocol)
        ctx = Recording(run, model, {k: v for k, v in method.parameters(model).items() if k != "head.bias"})
        for _ in range(2):
            method.step(Batch(self.samples, self.label, torch.tensor([0])), ctx)
        return ctx

    def by_hand(self, set_to_none: bool) -> list[float]:
        model = self.start()
        trained = [*model.encoders.parameters(), model.head.weight]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-4)
        losses = []
        for _ in range(2):
            features = model.encode(self.samples)
            for m in "av":
                loss = functional.cross_entropy(model.head(features[m]), self.label)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=set_to_none)
                losses.append(float(loss.detach()))
        return losses

    def test_losses_and_weights_after_two_batches(self) -> None:
        ctx = self.by_method()
        assert ctx.losses == pytest.approx([3.048587, 0.126930, 0.404235, 0.093168], abs=5.1e-7)
        close(next(ctx.model.encoders["a"].parameters()), [[1.227038, 0.454135], [-0.404801, 0.190369]])
        close(ctx.model.head.weight, [[1.462589, -0.300033], [-0.462680, 0.300033]])

    def test_no_encoder_coasts_in_another_ones_step_as_gradients_filled_with_zeros_would_let_it(self) -> None:
        assert self.by_method().losses == pytest.approx(self.by_hand(set_to_none=True), rel=1e-12)
        zero_filled = self.by_hand(set_to_none=False)
        assert zero_filled == pytest.approx([3.048587, 0.126930, 0.087251, 0.096001], abs=5.1e-7)


class TestStep:
    def test_each_of_the_optimiser_steps_moves_one_encoder_and_the_head(self) -> None:
        method, ctx, batch = prepare("abc")
        recording = Recording(ctx.run, ctx.model, method.parameters(ctx.model))
        method.step(batch, recording)
        moved = [{n for n in new if not torch.equal(old[n], new[n])} for old, new in pairwise(recording.seen)]
        assert moved == [{f"encoders.{m}.linear.weight", "head.weight", "head.bias"} for m in "abc"]
        assert recording.steps == 3

    def test_without_head_modification_it_is_independent_training_with_a_tied_head(self) -> None:
        method, ctx, batch = prepare(head_mod="none", lr=0.3)
        model = copy.deepcopy(ctx.model)
        for _ in range(3):
            method.step(batch, ctx)
            for m in "ab":
                loss = functional.cross_entropy(model.head(model.encoders[m](batch.inputs[m])), batch.labels)
                own = [*model.encoders[m].parameters(), *model.head.parameters()]
                for p, g in zip(own, torch.autograd.grad(loss, own), strict=True):
                    p.data -= 0.3 * g
        torch.testing.assert_close(parameters(ctx.model), parameters(model))

    @pytest.mark.parametrize("order", ["apply_first", "update_first"])
    def test_head_gradient_is_multiplied_by_the_projection_of_earlier_features(self, order: str) -> None:
        method, ctx, batch = prepare(order=order, lr=0.3)
        model, projection = copy.deepcopy(ctx.model), torch.eye(4)
        for position in range(2):
            method.step(batch, ctx)
            for m in "ab":
                features = model.encoders[m](batch.inputs[m])
                loss = functional.cross_entropy(model.head(features), batch.labels)
                encoder = next(model.encoders[m].parameters())
                own, weight, bias = torch.autograd.grad(loss, [encoder, model.head.weight, model.head.bias])
                later = shrink_projection(projection, features.detach().mean(0), alpha_at(position, 5))
                model.head.weight.data -= 0.3 * weight @ (projection if order == "apply_first" else later)
                model.head.bias.data -= 0.3 * bias
                encoder.data -= 0.3 * own
                projection = later
        torch.testing.assert_close(parameters(ctx.model), parameters(model))
        assert method.projection is not None
        torch.testing.assert_close(method.projection, projection)

    def test_head_step_leaves_what_it_answers_to_earlier_mean_features_nearly_alone(self) -> None:
        answers = {}
        for head_mod in ("owm", "none"):
            method, ctx, batch = prepare("a", head_mod=head_mod)
            mean = ctx.model.encode(batch.inputs)["a"].detach().mean(0)
            method.step(batch, ctx)
            before = ctx.model.head.weight.detach().clone()
            method.step(batch, ctx)
            answers[head_mod] = ((ctx.model.head.weight - before) @ mean).norm().item()
        assert answers["owm"] < 0.1 * answers["none"]

    def test_alpha_starts_again_in_every_epoch_and_the_projection_does_not(self) -> None:
        method, ctx, batch = prepare()
        method.step(batch, ctx)
        kept = method.projection
        method.start_epoch(ctx)
        assert method.projection is kept
        model = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        assert kept is not None
        assert method.projection is not None
        after_a = shrink_projection(kept, model.encode(batch.inputs)["a"].detach().mean(0), 0.1)
        after_b = shrink_projection(after_a, model.encode(batch.inputs)["b"].detach().mean(0), 0.1)
        torch.testing.assert_close(method.projection, after_b)

    def test_state_carries_the_projection(self) -> None:
        method, ctx, batch = prepare()
        method.step(batch, ctx)
        other, *_ = prepare()
        other.load_state_dict(method.state_dict())
        assert method.projection is not None
        assert other.projection is not None
        assert torch.equal(other.projection, method.projection)

    @pytest.mark.parametrize("modalities", ["ab", "abc"])
    def test_passes_are_those_of_joint_training(self, modalities: str) -> None:
        method, ctx, batch = prepare(modalities)
        counter = PassCounter(tuple(modalities))
        counter.watch(ctx.model.encoders)
        method.step(batch, ctx)
        assert counter.passes(6, 1) == method.expected_passes(ctx.plan) == Passes(1, 1)


class TestPrediction:
    def test_head_has_the_features_width_whatever_the_fusion(self) -> None:
        for model in (MLA(MLA.Options(), task(fusion=fusion)).build() for fusion in (Sum, task().fusion)):
            assert model.head.weight.shape == (3, 4)
            assert not list(model.fusion.parameters())

    @pytest.mark.parametrize("options", [{}, {"softmax": "batch"}, {"weights": {"a": 0.55, "b": 0.45}}])
    def test_fused_logits_are_the_weighted_unimodal_ones(self, options: dict[str, Any]) -> None:
        method, ctx, batch = prepare(**options)
        prediction = method.predict(ctx.model, batch)
        weights = options.get("weights") or confidence_weights(prediction.unimodal, options.get("softmax", "classes"))
        torch.testing.assert_close(prediction.logits, fuse(prediction.unimodal, weights))
        for m, features in ctx.model.encode(batch.inputs).items():
            torch.testing.assert_close(prediction.unimodal[m], ctx.model.head(features))

    def test_missing_modality_has_no_say(self) -> None:
        _, ctx, batch = prepare()
        features = ctx.model.encode(batch.inputs, only=["b"])
        assert isinstance(ctx.model, ConfidenceModel)
        torch.testing.assert_close(ctx.model.classify(features), ctx.model.head(features["b"]))


class TestOptions:
    def test_fixed_weights_must_sum_to_one(self) -> None:
        with pytest.raises(ValidationError, match=r"sum to 1, found 0\.9"):
            MLA.Options(weights={"a": 0.5, "b": 0.4})

    def test_fixed_weights_of_other_modalities_are_refused(self) -> None:
        options = MLA.Options(weights={"a": 0.55, "v": 0.45})
        assert "one weight per modality (a, b), found a, v" in str(MLA.refuses(options, task()))
        assert MLA.refuses(options, task("av")) is None

    def test_unequal_widths_are_refused(self) -> None:
        widths = {"a": 4, "b": 5}
        unequal = Task({"a": (3,), "b": (3,)}, 3, 2, lambda m, shape: Linear(shape[0], widths[m]))
        assert "equal width, found {'a': 4, 'b': 5}" in str(MLA.refuses(MLA.Options(), unequal))
