"""ARM: the worked histograms and contributions, the two maps, and who sees labels when."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.arm import (
    ARM,
    ReinforcedModel,
    bins_of,
    conditional_information,
    contributions,
    entropy,
    histogram,
    mutual_information,
    reinforcements,
    released_conditional_information,
    released_contributions,
)
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.fusion import Concat, FiLM, Fusion, Sum
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import fit, initialised
from tests.baselines.scenes import context

X = torch.tensor([0, 0, 1, 1, 0, 1, 0, 1])
Y = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0])
U = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(found: tuple[Tensor, Tensor]) -> list[float]:
    return [value.item() for value in found]


class TestWorkedNumbers:
    def test_mutual_information_of_two_bits_is_0130812_and_0188722_normalised(self) -> None:
        assert pair(mutual_information(X, Y, bins=2)) == pytest.approx([0.130812, 0.188722], abs=5e-7)

    def test_exact_conditional_information_is_0346574_and_one_quarter_normalised(self) -> None:
        assert pair(conditional_information(X, Y, [U])) == pytest.approx([0.346574, 0.25], abs=5e-7)

    def test_released_estimator_gives_3465736_and_0625_for_the_same_bits(self) -> None:
        assert pair(released_conditional_information(X, Y, [U], 2)) == pytest.approx([3.465736, 0.625], abs=5e-7)

    def test_released_contributions_and_their_crossed_ratios(self) -> None:
        found = released_contributions(vector(0.4, 0.1), vector(0.3, 0.05), 0.6, vector(0.7, 0.5))
        assert found.tolist() == pytest.approx([0.29, 0.095], abs=5e-7)
        audio, video = reinforcements(found, None).tolist()
        assert video == pytest.approx(3.052632, abs=5e-7)
        assert audio == pytest.approx(0.327586, abs=5e-7)

    def test_independent_gaussians_have_half_a_released_and_no_exact_conditional_information(self) -> None:
        x, y, u = bins_of(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 32768))), 2)
        assert released_conditional_information(x, y, [u], 2)[1].item() == pytest.approx(0.499059, abs=5e-7)
        assert conditional_information(x, y, [u])[1].item() == pytest.approx(0.00006, abs=5e-6)

    @pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
    def test_rectified_features_have_a_released_conditional_information_near_1(self, scale: float) -> None:
        torch.manual_seed(0)
        image, audio = scale * normal(2, 128, 512).relu().float()
        with torch.no_grad():
            fused = nn.Linear(1024, 512)(torch.cat([image, audio], 1))
        x, y, u = bins_of(torch.stack([audio, fused, image]).flatten(1), 2)
        assert released_conditional_information(x, y, [u], 2)[1].item() == pytest.approx(1.0, abs=0.05)
        assert conditional_information(x, y, [u])[1].item() < 0.01

    def test_released_contributions_amplify_the_more_confident_modality(self) -> None:
        """With a conditional information of 1, as released features have it, and a mutual one of 0.0079."""
        own = vector(0.2, 0.4)
        found = released_contributions(vector(0.00793, 0.00793), vector(1, 1), 0.5, own)
        assert reinforcements(found, None).tolist() == pytest.approx([0.494955, 2.020385], rel=1e-5)


class TestBins:
    def test_bins_have_equal_width_between_the_extremes_of_each_row(self) -> None:
        found = bins_of(torch.tensor([[0.0, 0.9, 1.1, 2.0], [-4.0, 4.0, 0.1, -0.1]]), 2)
        assert found.tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]

    def test_a_diverged_run_ends_in_its_loss_and_not_in_its_bins(self) -> None:
        assert bins_of(torch.tensor([0.0, 1.0, float("nan")]), 2).tolist() == [0, 0, 0]
        assert bins_of(torch.tensor([0.0, 1.0, float("inf")]), 2).tolist() == [0, 0, 0]

    def test_they_are_numpys_bins(self) -> None:
        x, y = normal(2, 500)
        expected = np.histogram2d(x.numpy(), y.numpy(), bins=30)[0] / 500
        torch.testing.assert_close(histogram(*bins_of(torch.stack([x, y]), 30), bins=30), torch.from_numpy(expected))

    def test_a_constant_series_has_one_bin_and_no_information(self) -> None:
        constant, other = bins_of(torch.zeros(50), 30), bins_of(normal(50), 30)
        assert constant.tolist() == [0] * 50
        assert pair(mutual_information(constant, constant)) == [0, 0]
        assert mutual_information(constant, other)[1].item() == pytest.approx(0, abs=1e-12)
        assert pair(conditional_information(X * 0, X * 0, [U])) == [0, 0]

    def test_entropy_of_a_fair_bit_is_ln_2(self) -> None:
        assert entropy(histogram(X, bins=2)).item() == pytest.approx(0.693147, abs=5e-7)


class TestInformation:
    def test_a_series_tells_all_of_itself(self) -> None:
        x = bins_of(normal(400), 30)
        assert mutual_information(x, x)[1].item() == pytest.approx(1)
        assert conditional_information(X, X, [U])[1].item() == pytest.approx(0.5)

    @given(st.floats(0.01, 100), st.floats(-10, 10), st.integers(0, 20))
    def test_it_does_not_change_under_increasing_affine_maps(self, scale: float, shift: float, seed: int) -> None:
        x, y = normal(2, 300, seed=seed)
        plain, mapped, other = bins_of(x, 30), bins_of(scale * x + shift, 30), bins_of(x + y, 30)
        expected = mutual_information(plain, other)[1].item()
        assert mutual_information(mapped, other)[1].item() == pytest.approx(expected, abs=1e-12)

    @given(st.integers(0, 1000), st.integers(1, 200), st.integers(2, 5))
    def test_it_lies_between_0_and_its_bound(self, seed: int, size: int, bins: int) -> None:
        series = torch.randint(0, bins, (4, size), generator=torch.Generator().manual_seed(seed))
        assert -1e-12 <= mutual_information(series[0], series[1], bins)[1].item() <= 1 + 1e-12
        for known in ([series[2]], [series[2], series[3]]):
            information, normalised = conditional_information(series[0], series[1], known, bins)
            assert information.item() >= 0
            assert normalised.item() <= 0.5 + 1e-12

    def test_it_is_zero_where_the_condition_explains_everything(self) -> None:
        """x and y are copies of u and v: they share what u shares with v, and nothing given both."""
        u, v = torch.randint(0, 2, (2, 100), generator=torch.Generator().manual_seed(0))
        assert conditional_information(u, v, [u])[0].item() == pytest.approx(0, abs=1e-12)
        assert conditional_information(u, v, [u, v])[0].item() == pytest.approx(0, abs=1e-12)

    def test_several_conditions_count_as_their_combinations(self) -> None:
        x, y, u, v = torch.randint(0, 2, (4, 200), generator=torch.Generator().manual_seed(1))
        parts = 0.0
        for cell in range(4):
            chosen = (2 * u + v) == cell
            parts += chosen.double().mean().item() * mutual_information(x[chosen], y[chosen], 2)[0].item()
        assert conditional_information(x, y, [u, v])[0].item() == pytest.approx(parts)


class TestFactors:
    def test_contributions_add_what_is_shared_and_what_is_the_modalitys_own(self) -> None:
        found = contributions(vector(0.4, 0.0), vector(0.3, 0.0), 0.6, vector(0.7, 0.5))
        assert found.tolist() == pytest.approx([0.6 * 0.4 + 0.7 * 0.3, 1e-3])

    @given(st.lists(st.floats(0.001, 2), min_size=2, max_size=5))
    def test_weaker_modalities_get_larger_factors_within_the_limit(self, values: list[float]) -> None:
        found = reinforcements(vector(*values), 10.0).tolist()
        order = sorted(range(len(values)), key=values.__getitem__)
        assert all(found[a] >= found[b] - 1e-9 for a, b in pairwise(order))
        assert all(0.1 <= factor <= 10 for factor in found)

    def test_two_factors_are_each_others_inverse_and_equal_contributions_leave_all_at_one(self) -> None:
        first, second = reinforcements(vector(0.2, 0.5)).tolist()
        assert (first, first * second) == pytest.approx((2.5, 1))
        assert reinforcements(vector(0.3, 0.3, 0.3)).tolist() == pytest.approx([1, 1, 1])

    def test_more_modalities_are_compared_with_the_mean_of_the_others(self) -> None:
        assert reinforcements(vector(1, 2, 4)).tolist() == pytest.approx([3, 1.25, 0.375])


class Encoder(nn.Module):
    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(shape[0], width), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


def task(modalities: int = 2, fusion: type[Fusion] = Concat, widths: tuple[int, ...] = (6, 6, 6)) -> Task:
    by_name = dict(zip("avt", widths, strict=True))
    return Task(dict.fromkeys("avt"[:modalities], (4,)), 3, 4, lambda m, s: Encoder(s, by_name[m]), fusion)


def part(samples: int = 30, modalities: int = 2, shift: int = 0) -> Part:
    generator, labels = torch.Generator().manual_seed(0), torch.arange(samples) % 3
    means = torch.eye(4)[labels]
    inputs = {m: means + (1 + k) * torch.randn(samples, 4, generator=generator) for k, m in enumerate("avt")}
    return Part.from_tensors({m: inputs[m] for m in "avt"[:modalities]}, (labels + shift) % 3)


def arm(modalities: int = 2, fusion: type[Fusion] = Concat, **options: Any) -> ARM:
    return ARM(ARM.Options(**options), task(modalities, fusion))


def prepare(method: ARM) -> tuple[Context, ReinforcedModel, list[Batch]]:
    data = part(modalities=len(method.task.modalities))
    model = initialised(method, 0).train()
    assert isinstance(model, ReinforcedModel)
    ctx = context(method, model, data, 10, optimizer=Optimizer(lr=0.1))
    return ctx, model, list(method.batches(ctx))


class TestModel:
    @pytest.mark.parametrize("variant", ["ours", "released"])
    def test_no_gradient_reaches_the_factors(self, variant: str) -> None:
        """d loss / d z_m = r_m (softmax - onehot) (F H_m) / B, row by row."""
        method = arm(variant=variant)
        ctx, model, batches = prepare(method)
        forward = ctx.forward(batches[0])
        loss = method.losses(forward, batches[0], ctx)["fused"]
        gradients = ctx.feature_gradients(forward, loss)
        assert model.current is not None
        assert not torch.equal(model.current, torch.ones(2))
        labels = batches[0].labels
        error = (forward.logits.softmax(1) - functional.one_hot(labels, 3)) / len(labels)
        for k, m in enumerate("av"):
            weight = model.head.weight @ model.map.weight[:, 6 * k : 6 * k + 6]
            torch.testing.assert_close(gradients[m], (model.current[k] * error @ weight).detach())

    @pytest.mark.parametrize("fusion", [Concat, Sum, FiLM])
    def test_logits_are_two_maps_of_scaled_features_and_slices_sum_to_them(self, fusion: type[Fusion]) -> None:
        _, model, batches = prepare(arm(fusion=fusion))
        model.current = torch.tensor([2.0, 0.5])
        features = model.encode(batches[0].inputs)
        fused = model.fusion({"a": 2.0 * features["a"], "v": 0.5 * features["v"]})
        torch.testing.assert_close(model.classify(features), model.head(model.map(fused)))
        if fusion.additive:
            parts = model.unimodal_logits(features)
            torch.testing.assert_close(parts["a"] + parts["v"], model.classify(features))

    def test_encoders_start_like_those_of_every_other_method(self) -> None:
        _, model, _ = prepare(arm())
        torch.manual_seed(0)
        plain = task().build_model()
        torch.manual_seed(0)
        own = arm().build()
        assert all(
            torch.equal(a, b) for a, b in zip(plain.encoders.parameters(), own.encoders.parameters(), strict=True)
        )
        assert model.head.in_features == 6

    def test_limit_one_scales_nothing(self) -> None:
        method = arm(limit=1)
        ctx, model, batches = prepare(method)
        method.step(batches[0], ctx)
        assert model.current is not None
        assert model.current.tolist() == model.average.tolist() == [1, 1]


class TestMethod:
    def test_factors_are_those_of_the_pure_functions(self) -> None:
        method = arm()
        ctx, model, batches = prepare(method)
        forward, labels = ctx.forward(batches[0]), batches[0].labels
        with torch.no_grad():
            z = {m: value.detach() for m, value in forward.features.items()}
            f = model.map(torch.cat([z["a"], z["v"]], 1))
            alone = [
                functional.linear(z["a"], model.map.weight[:, :6]),
                functional.linear(z["v"], model.map.weight[:, 6:]),
            ]
            # Each modality's logits: its slice of both maps, and half of the bias that both have together.
            bias = model.head(model.map.bias) / 2
            sure = [
                logits.softmax(1).gather(1, labels[:, None]).mean().double()
                for logits in (model.head(f), *(functional.linear(h, model.head.weight) + bias for h in alone))
            ]
            series = [bins_of(value.flatten(), 30) for value in (f, z["a"], z["v"])]
            bits = [bins_of(value.flatten(), 2) for value in (f, z["a"], z["v"])]
            mutual = torch.stack([mutual_information(series[k], series[0])[1] for k in (1, 2)])
            conditional = torch.stack(
                [
                    conditional_information(bits[1], bits[0], [bits[2]])[1],
                    conditional_information(bits[2], bits[0], [bits[1]])[1],
                ]
            )
            expected = reinforcements(contributions(mutual, conditional, sure[0], torch.stack(sure[1:])))
        found = method.factors(model, forward.features, labels)
        torch.testing.assert_close(found["mutual"], mutual)
        torch.testing.assert_close(found["conditional"], conditional)
        torch.testing.assert_close(found["factor"], expected.float())

    def test_factors_of_a_batch_do_not_depend_on_the_batch_before(self) -> None:
        found = []
        for before in (0, 1):
            method = arm()
            ctx, model, batches = prepare(method)
            for number in (before, 2):
                method.losses(ctx.forward(batches[number]), batches[number], ctx)
            found.append(model.current)
        assert torch.equal(*found)  # type: ignore[arg-type]

    def test_the_average_is_plain_at_first_and_keeps_the_share_asked_for_later(self) -> None:
        method = arm(memory=0.6)
        ctx, model, batches = prepare(method)
        seen = []
        for batch in batches:
            method.step(batch, ctx)
            assert model.current is not None
            seen.append(model.current)
        torch.testing.assert_close(model.average, 0.6 * (seen[0] + seen[1]) / 2 + 0.4 * seen[2])

    @pytest.mark.parametrize(("variant", "reads"), [("ours", False), ("released", True)])
    def test_only_the_released_variant_reads_the_labels_it_is_judged_by(self, variant: str, reads: bool) -> None:
        method = arm(variant=variant)
        ctx, model, batches = prepare(method)
        method.step(batches[0], ctx)
        model.eval()
        with torch.no_grad():
            true, false = (method.predict(model, next(iter(part(shift=k).batches(30)))).logits for k in (0, 1))
        assert torch.equal(true, false) is not reads

    def test_evaluation_uses_the_average_and_not_the_last_batch(self) -> None:
        method = arm()
        ctx, model, batches = prepare(method)
        for batch in batches:
            method.step(batch, ctx)
        model.eval()
        with torch.no_grad():
            features = model.encode(batches[0].inputs)
            scaled = torch.cat([r * features[m] for r, m in zip(model.average, "av", strict=True)], 1)
            expected = model.head(model.map(scaled))
            found = method.predict(model, batches[0])
        torch.testing.assert_close(found.logits, expected)
        torch.testing.assert_close(found.unimodal["a"] + found.unimodal["v"], expected)

    def test_the_released_random_map_never_learns(self) -> None:
        method = arm(variant="released")
        parts = {"train": part(), "val": part(9), "test": part(9)}
        before = initialised(method, 0).state_dict()
        after = fit(
            method, parts, Protocol(epochs=4, batch_size=10, optimizer=Optimizer(lr=0.01)), 0
        ).model.state_dict()
        assert {name for name in before if name.startswith("neck.")} == {"neck.weight", "neck.bias"}
        assert {name for name in before if torch.equal(before[name], after[name])} == {"neck.weight", "neck.bias"}

    @pytest.mark.parametrize(("modalities", "fusion"), [(3, Concat), (2, Sum), (3, FiLM)])
    def test_more_modalities_and_other_fusions_train_and_the_released_variant_refuses_them(
        self, modalities: int, fusion: type[Fusion]
    ) -> None:
        method = arm(modalities, fusion)
        ctx, _, batches = prepare(method)
        for batch in batches:
            method.step(batch, ctx)
        notes = ctx.notes()
        assert all(0.1 <= notes[f"factor, {m}"] <= 10 for m in method.task.modalities)
        refusal = ARM.refuses(ARM.Options(variant="released"), method.task)
        found = f"found {modalities} modalities and fusion {fusion.__name__.lower()}; use variant=ours"
        assert refusal == f"variant=released takes two modalities and fusion concat, {found}"

    def test_unequal_widths_are_refused_with_what_works(self) -> None:
        refusal = ARM.refuses(ARM.Options(), task(widths=(6, 5, 6)))
        assert refusal == "needs encoders of equal width, found {'a': 6, 'v': 5}; use a backbone with one width"
        assert ARM.refuses(ARM.Options(), task()) is None

    @pytest.mark.parametrize("options", [{"bins": 1}, {"limit": 0.5}, {"memory": 1.0}, {"variant": "paper"}])
    def test_bad_options_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            ARM.Options(**options)
