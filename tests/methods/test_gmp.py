"""GMP's equations on numbers worked out by hand, and what holds for all gradients and confidences."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmark.errors import UsageError
from benchmark.fusion import Concat
from benchmark.gradients import project_conflict
from benchmark.model import MultimodalModel, perceptron
from methods.gmp import RULES, Variant, coefficient, confidences, modulate, ratios, true_confidence


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: object, expected: object) -> None:
    found = found if isinstance(found, Tensor) else f64(found)
    torch.testing.assert_close(found.double(), f64(expected), rtol=0, atol=0.51e-6)


CLASS = {"v": f64([0.8, 0.6, 0.9, 0.7]), "a": f64([0.5, 0.4, 0.6, 0.375])}
DOMAIN = {"v": f64([0.7, 0.6, 0.8, 0.65]), "a": f64([0.5, 0.55, 0.45, 0.7])}
VIDEO = (f64([2, 0]), f64([-1, 1]))
AUDIO = (f64([1, 1]), f64([-2, 0.5]))


class TestRatios:
    def test_of_two_modalities(self) -> None:
        rho, sigma, gamma = ratios(CLASS, DOMAIN)
        close([rho["v"], rho["a"]], [1.6, 0.625])
        close([sigma["v"], sigma["a"]], [0.8, 1.25])
        close([gamma["v"], gamma["a"]], [2, 0.5])

    def test_of_three_modalities_compare_with_the_mean_of_the_others(self) -> None:
        sums = {"a": f64([1, 2]), "b": f64([2, 0]), "c": f64([0.5, 0.5])}
        rho, sigma, gamma = ratios(sums, sums)
        close(list(rho.values()), [2, 1, 0.4])
        close(list(sigma.values()), [0.5, 1, 2.5])
        close(list(gamma.values()), [4, 1, 0.16])

    @given(st.integers(0, 10**6))
    def test_two_modalities_take_opposite_branches(self, seed: int) -> None:
        values = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1e-3
        rho, sigma, gamma = ratios({"v": values[0], "a": values[1]}, {"v": values[2], "a": values[3]})
        for ratio in (rho, sigma, gamma):
            torch.testing.assert_close(ratio["v"] * ratio["a"], f64(1.0))
        strength = values.sum(1)
        torch.testing.assert_close(gamma["v"], strength[0] * strength[2] / (strength[1] * strength[3]))

    @pytest.mark.parametrize("domain", [{"v": f64([1.0])}, {"v": f64([1.0]), "b": f64([1.0])}])
    def test_modalities_must_be_the_same_for_classes_and_domains(self, domain: dict[str, Tensor]) -> None:
        with pytest.raises(UsageError, match=r"Found \['v', 'a'\] and"):
            ratios(CLASS, domain)

    def test_one_modality_has_nothing_to_compare_with(self) -> None:
        with pytest.raises(UsageError, match="two or more modalities"):
            ratios({"v": f64([1.0])}, {"v": f64([1.0])})


class TestCoefficient:
    @pytest.mark.parametrize(
        ("ratio", "expected"), [(1.6, 0.335963), (0.625, 1), (0.8, 1), (1.25, 0.4454), (1.0, 1), (math.nan, 1)]
    )
    def test_cuts_the_stronger_modality_alone(self, ratio: float, expected: float) -> None:
        found = coefficient(ratio, 0.5)
        assert type(found) is float
        close(found, expected)
        close(coefficient(f64(ratio), 0.5), expected)

    @pytest.mark.parametrize(
        ("alpha", "jump"),
        [
            (0.1, 0.099668),
            (0.2, 0.197375),
            (0.3, 0.291313),
            (0.4, 0.379949),
            (0.5, 0.462117),
            (0.6, 0.537050),
            (0.8, 0.664037),
            (1.0, 0.761594),
        ],
    )
    def test_jumps_by_tanh_alpha_above_one_as_printed(self, alpha: float, jump: float) -> None:
        close(coefficient(1.0, alpha) - coefficient(1 + 1e-9, alpha), jump)
        close(coefficient(1 + 1e-9, alpha, "continuous"), 1)

    def test_the_continuous_form_counts_from_one(self) -> None:
        close(coefficient(1.6, 0.5, "continuous"), 1 - math.tanh(0.3))

    @given(st.floats(0, 1e6))
    def test_without_alpha_nothing_is_cut(self, ratio: float) -> None:
        assert coefficient(ratio, 0.0) == 1.0

    def test_an_unknown_form_is_refused(self) -> None:
        with pytest.raises(UsageError, match="Did you mean 'printed'"):
            coefficient(1.6, 0.5, "print")  # type: ignore[arg-type]


class TestModulate:
    @pytest.mark.parametrize(
        ("variant", "video", "audio"),
        [
            ("cagp_only", (0, 2), (-0.25, 2.25)),
            ("full", (-0.664037, 1.335963), (0.443250, 1.556750)),
            ("igdm_only", (-0.328074, 1), (0.109199, 1.222700)),
            ("unified_modulation", (0.335963, 0.335963), (-1, 1.5)),
            ("igdm_without_k", (1, 1), (0.109199, 1.222700)),
            ("igdm_without_p", (-0.328074, 1), (-1, 1.5)),
            ("reverse_cagp", (2, 1), (-1.705882, 1.676471)),
            ("pcgrad", (1, 2), (-0.955882, 2.426471)),
            ("fixed_projection_class", (0, 2), (-1.705882, 1.676471)),
            ("fixed_projection_domain", (2, 1), (-0.25, 2.25)),
        ],
    )
    def test_variants_of_table_4(self, variant: Variant, video: Any, audio: Any) -> None:
        rho, sigma, gamma = ratios(CLASS, DOMAIN)
        for name, pair, expected in (("v", VIDEO, video), ("a", AUDIO, audio)):
            k, p = coefficient(rho[name], 0.5), coefficient(sigma[name], 0.5)
            close(modulate(*pair, k=k, p=p, gamma=gamma[name], variant=variant), expected)

    def test_every_variant_has_its_rule(self) -> None:
        assert set(RULES) == set(get_args(Variant))

    @pytest.mark.parametrize("variant", get_args(Variant))
    def test_tensors_and_numbers_give_the_same(self, variant: Variant) -> None:
        numbers = {"k": 0.3, "p": 0.4, "gamma": 2.0}
        tensors: Any = {name: f64(value) for name, value in numbers.items()}
        found = modulate(*VIDEO, **numbers, variant=variant)  # type: ignore[arg-type]
        assert torch.equal(found, modulate(*VIDEO, **tensors, variant=variant))

    @given(seed=st.integers(0, 10**6), gamma=st.sampled_from([0.2, 5.0]))
    def test_the_weaker_task_keeps_its_whole_gradient(self, seed: int, gamma: float) -> None:
        values = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        own, domain = values[0], values[1] * -(values[0] @ values[1]).sign()
        protected = 0.7 * own if gamma < 1 else 0.4 * domain
        whole = modulate(own, domain, k=0.7, p=0.4, gamma=gamma)
        torch.testing.assert_close(whole @ protected, protected @ protected)

    @given(seed=st.integers(0, 10**6), gamma=st.sampled_from([0.2, 5.0]))
    def test_scaling_before_the_projection_is_the_same_as_after(self, seed: int, gamma: float) -> None:
        own, domain = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        k_own, p_domain = 0.3 * own, 0.8 * domain
        before = (
            project_conflict(k_own, p_domain) + p_domain if gamma > 1 else k_own + project_conflict(p_domain, k_own)
        )
        torch.testing.assert_close(modulate(own, domain, k=0.3, p=0.8, gamma=gamma), before)

    @pytest.mark.parametrize("variant", get_args(Variant))
    def test_without_conflict_and_scales_the_gradients_are_added(self, variant: Variant) -> None:
        own, domain = f64([2, 1]), f64([1, -1])
        assert torch.equal(modulate(own, domain, k=1, p=1, gamma=3, variant=variant), own + domain)

    def test_a_tie_projects_nothing(self) -> None:
        assert torch.equal(modulate(*VIDEO, k=1, p=1, gamma=1), VIDEO[0] + VIDEO[1])

    @pytest.mark.parametrize("variant", get_args(Variant))
    def test_saturated_coefficients_and_zero_gradients_stay_finite(self, variant: Variant) -> None:
        zero = torch.zeros(2)
        own, domain = (gradient.float() for gradient in VIDEO)
        saturated = coefficient(torch.tensor(40.0), 0.5)
        assert saturated == 0
        for pair in ((own, domain), (own, zero), (zero, domain), (zero, zero)):
            for gamma in (0.5, 2.0, math.inf, math.nan):
                assert modulate(*pair, k=saturated, p=saturated, gamma=gamma, variant=variant).isfinite().all()

    def test_a_class_gradient_of_which_nothing_is_left_does_not_touch_the_domains(self) -> None:
        close(modulate(*VIDEO, k=0.0, p=1.0, gamma=2.0), (-1, 1))

    def test_keeps_the_gradients_precision(self) -> None:
        own, domain = (gradient.float() for gradient in VIDEO)
        assert modulate(own, domain, k=f64(0.5), p=f64(1.0), gamma=f64(2.0)).dtype == torch.float32

    def test_unequal_shapes_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"Found \(2,\) and \(3,\)"):
            modulate(torch.zeros(2), torch.zeros(3), k=1, p=1, gamma=1)

    def test_an_unknown_variant_is_refused(self) -> None:
        with pytest.raises(UsageError, match="Did you mean 'igdm_only'"):
            modulate(*VIDEO, k=1, p=1, gamma=1, variant="igdm")  # type: ignore[arg-type]


class Features(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class TestConfidences:
    @staticmethod
    def model() -> MultimodalModel:
        model = MultimodalModel({"v": Features(2), "a": Features(1)}, Concat, 2)
        model.head = perceptron(3, 2, 2)  # type: ignore[assignment]
        hidden, output = model.head[0], model.head[2]  # type: ignore[index]
        hidden.weight.data = torch.tensor([[1, -1, 1], [0.5, 2, -1]])
        hidden.bias.data = torch.tensor([0.2, -0.4])
        output.weight.data, output.bias.data = torch.eye(2), torch.tensor([0.1, -0.1])
        return model

    features = {"v": torch.tensor([[1.0, 0.5]]), "a": torch.tensor([[2.0]])}  # noqa: RUF012
    target = torch.zeros(1, dtype=torch.long)

    def test_come_from_the_whole_head_with_the_others_zeroed(self) -> None:
        model = self.model()
        model.discriminator = model.head
        expected = {"v": f64([[0.8, 1.0]]), "a": f64([[2.3, -0.1]])}
        close(model.classify(self.features), [[2.8, -0.1]])
        own, domain = confidences(model, self.features, self.target, self.target + 1)
        for name, logits in expected.items():
            close(own[name], true_confidence(logits, self.target).tolist())
            close(domain[name], true_confidence(logits, self.target + 1).tolist())

    def test_are_taken_without_dropout_and_leave_every_mode_as_it_was(self) -> None:
        model = self.model().train()
        norm = nn.BatchNorm1d(2)
        layers = nn.Sequential(nn.Dropout(0.5), model.head, norm, nn.Dropout(0.5))
        layers[1].eval()
        model.head = layers  # type: ignore[assignment]
        model.discriminator = nn.Linear(3, 2)
        before = {name: module.training for name, module in model.named_modules()}
        first, second = (confidences(model, self.features, self.target, self.target)[0] for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert {name: module.training for name, module in model.named_modules()} == before
        assert norm.num_batches_tracked == 0

    def test_are_of_the_true_class(self) -> None:
        logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
        close(true_confidence(logits, torch.tensor([1, 1])), [0.75, 0.2])
