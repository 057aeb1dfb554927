"""MMCosine: the worked numbers, the invariances of cosine logits, and the head in training and evaluation."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.mmcosine import (
    CosineModel,
    MMCosine,
    cosine_logits,
    directions,
    reachable_posterior,
    smallest_scale,
)
from benchmark.fusion import FiLM, Fusion, Gated, Sum
from benchmark.task import Task


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor | float, expected: object, digits: int = 6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64), f64(expected), rtol=0, atol=0.51 * 10**-digits
    )


class Encoder(nn.Linear):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width)
        self.width = width


def task(widths: dict[str, int], classes: int = 2, fusion: type[Fusion] | None = None) -> Task:
    def encoder(modality: str, shape: tuple[int, ...]) -> nn.Module:
        return Encoder(shape[0], widths[modality])

    settings: dict[str, Any] = {} if fusion is None else {"fusion": fusion}
    return Task(dict.fromkeys(widths, (4,)), classes, 10, encoder, **settings)


def model(widths: dict[str, int], weight: object = None, **options: Any) -> CosineModel:
    built = MMCosine(MMCosine.Options(**options), task(widths)).build().double()
    assert isinstance(built, CosineModel)
    if weight is not None:
        with torch.no_grad():
            built.head.weight.copy_(f64(weight))
            built.head.bias.zero_()
    return built


class TestWorkedBatch:
    weight: ClassVar = [[1, 0, 0, 0, 0, 2], [0, 1, 1, 1, -1, 0]]

    def features(self) -> dict[str, Tensor]:
        return {
            "a": f64([[1, 2, 2], [0, 3, 4]]).requires_grad_(),
            "v": f64([[4, 0, 3], [1, 1, 1]]).requires_grad_(),
        }

    def test_cosines_of_each_modality(self) -> None:
        features, weight = self.features(), f64(self.weight)
        close(
            cosine_logits(features["a"].detach(), weight[:, :3], 1),
            [[0.333333, 0.942809], [0, 0.989949]],
        )
        close(
            cosine_logits(features["v"].detach(), weight[:, 3:], 1),
            [[0.600000, 0.565685], [0.577350, 0]],
        )

    def test_logits_loss_and_gradient(self) -> None:
        built, features = model({"a": 3, "v": 3}, self.weight), self.features()
        logits = built.classify(features)
        close(logits.detach(), [[9.333333, 15.084945], [5.773503, 9.899495]])
        loss = functional.cross_entropy(logits, torch.tensor([0, 1]))
        close(loss.detach(), 2.885401)
        loss.backward()
        assert features["a"].grad is not None
        close(
            features["a"].grad,
            [[-1.998912, 0.499728, 0.499728], [0.015891, -0.001798, 0.001348]],
        )

    def test_the_bias_gets_no_gradient_at_all(self) -> None:
        built = model({"a": 3, "v": 3}, self.weight)
        functional.cross_entropy(built.classify(self.features()), torch.tensor([0, 1])).backward()
        assert built.head.weight.grad is not None
        assert built.head.bias.grad is None

    def test_gradients_are_orthogonal_to_features_and_class_vectors(self) -> None:
        built, features = model({"a": 3, "v": 3}, self.weight), self.features()
        functional.cross_entropy(built.classify(features), torch.tensor([0, 1])).backward()
        for value in features.values():
            assert value.grad is not None
            close((value * value.grad).sum(1).detach(), [0, 0], digits=12)
        assert built.head.weight.grad is not None
        for columns in built.fusion.slices.values():
            products = (built.head.weight * built.head.weight.grad)[:, columns].sum(1)
            close(products.detach(), [0, 0], digits=12)

    def test_unimodal_logits_sum_to_the_fused_ones(self) -> None:
        built, features = model({"a": 3, "v": 3}, self.weight), self.features()
        unimodal = built.unimodal_logits(features)
        close(unimodal["a"].detach(), [[3.333333, 9.428090], [0, 9.899495]])
        assert torch.equal(unimodal["a"] + unimodal["v"], built.classify(features))


class TestEvaluation:
    """A sample on which the cosines and the plain head disagree."""

    weight: ClassVar = [[0.3, 0.4, 0, 0.1], [8, 0, 3, 4]]

    def features(self) -> dict[str, Tensor]:
        return {"a": f64([[3, 4]]), "v": f64([[0, 2]])}

    @pytest.mark.parametrize("training", [True, False])
    def test_cosines_decide_in_training_and_in_evaluation(self, training: bool) -> None:
        built = model({"a": 2, "v": 2}, self.weight).train(training)
        logits = built.classify(self.features()).detach()
        close(logits, [[20, 14]])
        close(functional.cross_entropy(logits, torch.tensor([0])), 0.002476)

    def test_the_linear_reading_judges_by_the_plain_head_and_trains_by_cosines(self) -> None:
        built = model({"a": 2, "v": 2}, self.weight, evaluation="linear")
        close(built.train().classify(self.features()).detach(), [[20, 14]])
        close(built.eval().classify(self.features()).detach(), [[2.7, 32.0]])

    def test_the_method_predicts_with_cosines(self) -> None:
        built = model({"a": 2, "v": 2}).eval()
        inputs = {name: torch.randn(5, 4, dtype=torch.float64) for name in "av"}
        prediction = built.predict(inputs)
        expected = built.classify(built.encode(inputs))
        assert torch.equal(prediction.logits, expected)
        plain = built.head(built.fuse(built.encode(inputs)))
        assert not torch.allclose(prediction.logits, plain)


class TestInvariances:
    @given(
        seed=st.integers(0, 10**6),
        feature_scale=st.floats(1e-3, 1e3),
        weight_scale=st.floats(1e-3, 1e3),
    )
    def test_positive_rescaling_changes_nothing_and_cosines_are_bounded(
        self, seed: int, feature_scale: float, weight_scale: float
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(4, 5, dtype=torch.float64, generator=generator)
        weight = torch.randn(3, 5, dtype=torch.float64, generator=generator)
        rows = torch.linspace(1, weight_scale, 3, dtype=torch.float64)[:, None]
        logits = cosine_logits(features, weight, 7.0)
        torch.testing.assert_close(cosine_logits(feature_scale * features, rows * weight, 7.0), logits)
        assert float(logits.abs().max()) <= 7 + 1e-12

    def test_a_dead_feature_has_cosine_zero_and_passes_no_gradient(self) -> None:
        features = torch.zeros(2, 3, requires_grad=True)
        weight = torch.randn(4, 3, requires_grad=True)
        logits = cosine_logits(features, weight, 10)
        assert float(logits.detach().abs().max()) == 0
        logits.sum().backward()
        assert features.grad is not None
        assert weight.grad is not None
        assert float(features.grad.abs().max()) == 0
        assert float(weight.grad.abs().max()) == 0

    def test_directions_have_length_one(self) -> None:
        close(directions(f64([[3, 4], [0, 1e-6], [0, 0]])), [[0.6, 0.8], [0, 1], [0, 0]])

    def test_a_missing_modality_adds_nothing(self) -> None:
        built, value = model({"a": 3, "v": 5, "t": 2}), torch.randn(4, 5, dtype=torch.float64)
        alone = built.classify({"v": value})
        assert torch.equal(alone, built.unimodal_logits({"v": value})["v"])
        assert list(built.unimodal_logits({"v": value})) == ["v"]

    @pytest.mark.parametrize("fusion", [Sum, FiLM, Gated])
    def test_other_fusions_use_the_parts_after_interaction(self, fusion: type[Fusion]) -> None:
        built = MMCosine(MMCosine.Options(scale=5), task({"a": 3, "v": 4}, fusion=fusion)).build()
        features = {"a": torch.randn(6, 3), "v": torch.randn(6, 4)}
        expected = torch.zeros(6, 2)
        for name, part in built.fusion.parts(features).items():
            weight = built.head.weight[:, built.fusion.slices[name]]
            expected += 5 * torch.cosine_similarity(part[:, None], weight[None], dim=2).detach()
        torch.testing.assert_close(built.classify(features).detach(), expected)


class TestScale:
    @pytest.mark.parametrize(
        ("classes", "page", "simplex", "reached"),
        [
            (6, 1.359522, 1.586109, 0.839352),
            (31, 2.624260, 2.708914, 0.883116),
            (51, 2.937138, 2.994729, 0.888918),
        ],
    )
    def test_bounds_for_a_posterior_of_09(self, classes: int, page: float, simplex: float, reached: float) -> None:
        bound = smallest_scale(classes, 0.9)
        close(bound, simplex)
        close(bound * classes / (classes + 1), page)
        close(reachable_posterior(classes, bound * classes / (classes + 1)), reached)
        assert reachable_posterior(classes, bound) == pytest.approx(0.9, abs=1e-12)

    @pytest.mark.parametrize("modalities", [1, 2, 3])
    def test_the_simplex_reaches_exactly_the_posterior(self, modalities: int) -> None:
        classes, scale = 5, 1.3
        simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
        logits = sum(cosine_logits(simplex, simplex, scale) for _ in range(modalities))
        assert isinstance(logits, Tensor)
        close(logits.softmax(1)[0, 0], reachable_posterior(classes, scale, modalities), digits=12)
        assert smallest_scale(classes, reachable_posterior(classes, scale, modalities), modalities) == (
            pytest.approx(scale, abs=1e-12)
        )


class TestMethod:
    def test_everything_but_the_bias_of_the_head_is_trained(self) -> None:
        method = MMCosine(MMCosine.Options(), task({"a": 3, "v": 5}))
        built = method.build()
        missing = dict(built.named_parameters()).keys() - method.parameters(built).keys()
        assert missing == {"head.bias"}

    def test_initialisation_equals_joint_training(self) -> None:
        setting = task({"a": 3, "v": 5})
        torch.manual_seed(0)
        ours = MMCosine(MMCosine.Options(), setting).build()
        torch.manual_seed(0)
        joint = setting.build_model()
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in joint.state_dict().items())

    @pytest.mark.parametrize("options", [{"scale": 0}, {"evaluation": "both"}, {"lam": 1.0}])
    def test_bad_options_are_refused_before_anything_runs(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            MMCosine.Options(**options)

    def test_the_scale_reaches_the_logits(self) -> None:
        features = {"a": f64([[3, 4]]), "v": f64([[0, 2]])}
        weight = [[0.3, 0.4, 0, 0.1], [8, 0, 3, 4]]
        close(model({"a": 2, "v": 2}, weight, scale=2.5).classify(features).detach(), [[5, 3.5]])
        assert math.isclose(MMCosine.Options().scale, 10)
