"""OGM-GE: the worked numbers, the official code's footprint on two ResNet-18s, and the window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.ogm_ge import OGMGE, coefficients, confidences, deviation, discrepancies, modulate_, selected
from benchmark.backbones.resnet import ResNet18
from benchmark.data import Batch
from benchmark.fusion import Concat
from benchmark.model import MultimodalModel
from benchmark.task import Task

LABELS = torch.tensor([0, 1])
AUDIO = torch.tensor([[2.0, 0.5, -1.0], [0.2, 1.5, 0.3]], dtype=torch.float64)
VIDEO = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.6, 0.2]], dtype=torch.float64)


def close(found: Tensor | float, expected: object, digits: int = 6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=0,
        atol=0.51 * 10**-digits,
    )


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestWorkedNumbers:
    def scores(self) -> Tensor:
        return confidences({"a": AUDIO, "v": VIDEO}, LABELS)

    def test_scores_and_discrepancies(self) -> None:
        close(self.scores(), [1.421032, 0.803068])
        close(discrepancies(self.scores()), [1.769504, 0.565130])

    @pytest.mark.parametrize(
        ("alpha", "expected"), [(0.1, 0.824874), (0.3, 0.513968), (0.8, 0.111322), (1.0, 0.056445)]
    )
    def test_the_stronger_modality_is_scaled_and_the_weaker_is_not(self, alpha: float, expected: float) -> None:
        stronger, weaker = coefficients(self.scores(), alpha)
        close(stronger, expected)
        assert weaker == 1

    def test_continuous_reading_gives_0451941_at_alpha_08(self) -> None:
        close(coefficients(self.scores(), 0.8, "continuous")[0], 0.451941)

    @pytest.mark.parametrize(("alpha", "expected"), [(0.1, 0.900332), (0.8, 0.335963)])
    def test_the_map_jumps_just_above_a_tie(self, alpha: float, expected: float) -> None:
        close(coefficients(scores(1 + 1e-9, 1), alpha)[0], expected)
        close(coefficients(scores(1 + 1e-9, 1), alpha, "continuous")[0], 1)

    def test_the_first_modality_is_scaled_in_a_tie(self) -> None:
        first, last = coefficients(scores(1, 1), 0.8)
        close(first, 0.335963)
        assert last == 1

    def test_split_of_the_shared_head(self) -> None:
        encoders = {name: _Stand(2) for name in "av"}
        model = MultimodalModel(encoders, Concat, classes=3).double()
        with torch.no_grad():
            model.head.weight.copy_(torch.arange(12).reshape(3, 4) / 10 - 0.5)
            model.head.bias.copy_(torch.tensor([0.3, -0.1, 0.2]))
            features = {
                "a": torch.tensor([[1, -2], [0.5, 0.25]], dtype=torch.float64),
                "v": torch.tensor([[0, 1], [-1, 2]], dtype=torch.float64),
            }
            logits, fused = model.unimodal_logits(features), model.classify(features)
        close(logits["a"], [[0.45, -0.15, -0.40], [-0.20, -0.10, 0.35]])
        close(logits["v"], [[-0.05, 0.15, 0.70], [0.05, 0.25, 0.80]])
        torch.testing.assert_close(logits["a"] + logits["v"], fused, rtol=0, atol=1e-15)
        found = confidences(logits, LABELS)
        close(discrepancies(found)[0], 1.550562)
        close(coefficients(found, 0.5)[0], 0.350010)


class _Stand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class TestMoreModalities:
    def test_every_modality_but_the_weakest_is_scaled_against_the_weakest(self) -> None:
        first, weakest, last = coefficients(scores(3, 1, 1.5), 0.5)
        close(first, 1 - math.tanh(1.5))
        close(last, 1 - math.tanh(0.75))
        assert weakest == 1

    @given(st.lists(st.floats(0.01, 100), min_size=2, max_size=5), st.floats(0, 3))
    def test_stronger_modalities_are_never_scaled_less(self, values: list[float], alpha: float) -> None:
        factors = coefficients(scores(*values), alpha).tolist()
        assert max(factors) == 1
        ordered = [factor for _, factor in sorted(zip(values, factors, strict=True), key=lambda pair: pair[0])]
        # Equally weak modalities are ordered by position, the last one unscaled: compare distinct scores.
        distinct = len(set(values)) == len(values)
        assert all(0 <= factor <= 1 for factor in ordered)
        assert not distinct or ordered == sorted(ordered, reverse=True)

    def test_a_hopeless_modality_stops_the_others(self) -> None:
        assert coefficients(scores(1, 0), 0.8).tolist() == [0, 1]


class TestNoise:
    def gradient(self, size: int = 40_000) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return 0.02 * torch.randn(4, size // 4, generator=generator, dtype=torch.float64) + 0.01

    @pytest.mark.parametrize(("noise", "share"), [("raw", 1.0), ("scaled", 0.25)])
    def test_noise_has_the_deviation_of_the_raw_or_of_the_scaled_gradient(self, noise: Any, share: float) -> None:
        raw = self.gradient()
        found = modulate_(raw.clone(), 0.25, noise=noise, generator=torch.Generator().manual_seed(0))
        added = found - 0.25 * raw
        assert float(added.std() / raw.std()) == pytest.approx(share, rel=0.02)
        assert abs(float(added.mean())) < 4 * share * float(raw.std()) / 200

    def test_the_expectation_over_noise_is_the_scaled_gradient(self) -> None:
        raw, generator = self.gradient(40), torch.Generator().manual_seed(0)
        mean = torch.stack([modulate_(raw.clone(), 0.5, generator=generator) for _ in range(4000)]).mean(0)
        torch.testing.assert_close(mean, 0.5 * raw, rtol=0, atol=5 * float(raw.std()) / 4000**0.5)

    def test_without_noise_it_is_one_common_factor(self) -> None:
        raw = self.gradient(40)
        assert torch.equal(modulate_(raw.clone(), 0.3, noise="none"), 0.3 * raw)

    def test_a_single_number_gets_finite_noise(self) -> None:
        found = modulate_(torch.ones(1, 1), 0.5, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(found, torch.full((1, 1), 0.5), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(64, 32, 3, 3), (512, 10), (1, 7)])
    @pytest.mark.parametrize("mean", [0.0, -1.0])
    def test_the_deviation_is_that_of_all_entries(self, shape: tuple[int, ...], mean: float) -> None:
        gradient = 1e-3 * (mean + torch.randn(shape, generator=torch.Generator().manual_seed(2)))
        torch.testing.assert_close(deviation(gradient), gradient.std(), rtol=1e-5, atol=0)

    @pytest.mark.parametrize("shape", [(1, 1), (300, 7)])
    def test_equal_entries_deviate_by_nothing_that_matters(self, shape: tuple[int, ...]) -> None:
        assert float(deviation(torch.full(shape, 0.1))) < 1e-3 * 0.1

    def test_tensors_are_chosen_by_their_dimensions(self) -> None:
        gradients = {f"g{n}": torch.zeros([1] * n) for n in range(6)}
        assert list(selected(gradients)) == ["g2", "g3", "g4", "g5"]
        assert list(selected(gradients, "4d")) == ["g4"]


@dataclass
class Step:
    """One training step up to the backward: raw gradients by parameter name."""

    raw: dict[str, Tensor]
    forward: Any
    batch: Batch


@pytest.fixture(scope="module")
def step() -> Step:
    torch.manual_seed(0)
    model = MultimodalModel({name: ResNet18((3, 32, 32)) for name in "av"}, Concat, 5)
    inputs = {name: torch.randn(4, 3, 32, 32) for name in "av"}
    batch = Batch(inputs, torch.tensor([0, 1, 2, 3]), torch.arange(4))
    features = model.encode(batch.inputs)
    functional.cross_entropy(model.classify(features), batch.labels).backward()
    raw = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        return Step(raw, SimpleNamespace(unimodal=model.unimodal_logits(features)), batch)


class TestFootprintOnResNets:
    """What the official training function was seen to change on two ResNet-18s and a linear head."""

    def modulated(self, step: Step, **options: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        gradients: dict[str, dict[str, Tensor]] = {"a": {}, "v": {}}
        for name, gradient in step.raw.items():
            top, _, rest = name.partition(".")
            if top == "encoders":
                modality, _, key = rest.partition(".")
                gradients[modality][key] = gradient.clone()
        ctx: Any = SimpleNamespace(epoch=0, epochs=10, generator=torch.Generator().manual_seed(3))
        method = OGMGE(OGMGE.Options(**options), _task())
        method.modulate_parameters(gradients, step.forward, step.batch, ctx)
        flat = {f"encoders.{m}.{key}": g for m, named in gradients.items() for key, g in named.items()}
        factors = coefficients(confidences(step.forward.unimodal, step.batch.labels), 0.8)
        return flat, dict(zip(step.forward.unimodal, factors.tolist(), strict=True))

    @pytest.mark.parametrize("tensors", ["matrices", "4d"])
    def test_noise_reaches_40_of_122_tensors_all_of_them_kernels(self, step: Step, tensors: str) -> None:
        raw = step.raw
        assert len(raw) == 122
        found, factors = self.modulated(step, tensors=tensors)
        changed = {name for name, gradient in found.items() if not torch.equal(gradient, raw[name])}
        assert changed == {name for name in found if raw[name].ndim == 4}
        assert len(changed) == 40
        deviations = [
            float((found[name] - factors[name.split(".")[1]] * raw[name]).std() / raw[name].std())
            for name in changed
            if raw[name].numel() > 100_000
        ]
        assert deviations == pytest.approx([1.0] * len(deviations), abs=0.01)

    def test_without_noise_20_kernels_of_the_stronger_encoder_share_one_factor(self, step: Step) -> None:
        raw = step.raw
        found, factors = self.modulated(step, noise="none")
        stronger = min(factors, key=lambda name: factors[name])
        changed = {name for name, gradient in found.items() if not torch.equal(gradient, raw[name])}
        assert changed == {name for name in found if raw[name].ndim == 4 and name.startswith(f"encoders.{stronger}.")}
        assert len(changed) == 20
        for name in changed:
            assert torch.equal(found[name], factors[stronger] * raw[name])

    def test_alpha_zero_without_noise_changes_no_bit(self, step: Step) -> None:
        found, _ = self.modulated(step, **OGMGE.noop)
        assert all(torch.equal(gradient, step.raw[name]) for name, gradient in found.items())

    def test_noise_depends_on_the_generator_alone(self, step: Step) -> None:
        once, again = self.modulated(step)[0], self.modulated(step)[0]
        assert all(torch.equal(once[name], again[name]) for name in once)


def _encoder(modality: str, shape: tuple[int, ...]) -> nn.Module:
    module = _Stand(3)
    module.layer = nn.Linear(shape[0], 3) if modality == "flat" else nn.Conv2d(1, 3, 3)
    return module


def _task() -> Task:
    return Task({"a": (1, 4, 4), "v": (1, 4, 4)}, 3, 10, _encoder)


class TestMethod:
    def active(self, epochs: int, **window: float) -> list[int]:
        """Return the epochs in which a gradient is changed."""
        method, found = OGMGE(OGMGE.Options(noise="none", **window), _task()), []
        forward: Any = SimpleNamespace(unimodal={"a": AUDIO, "v": VIDEO})
        batch: Any = SimpleNamespace(labels=LABELS)
        for epoch in range(epochs):
            ctx: Any = SimpleNamespace(epoch=epoch, epochs=epochs, generator=torch.Generator())
            gradients = {"a": {"w": torch.ones(2, 2)}, "v": {"w": torch.ones(2, 2)}}
            method.modulate_parameters(gradients, forward, batch, ctx)
            if float(gradients["a"]["w"].sum()) != 4:
                found.append(epoch)
        return found

    def test_the_default_window_is_the_official_one(self) -> None:
        assert self.active(100) == list(range(51))

    def test_both_ends_of_the_window_are_included(self) -> None:
        assert self.active(100, start=0.2, end=0.8) == list(range(20, 81))
        assert self.active(10, start=0.3, end=0.7) == [3, 4, 5, 6, 7]

    def test_the_whole_run(self) -> None:
        assert self.active(7, start=0, end=1) == list(range(7))

    @pytest.mark.parametrize(
        "options", [{"start": 0.6, "end": 0.4}, {"alpha": -0.1}, {"end": 1.5}, {"noise": True}, {"lam": 1}]
    )
    def test_bad_options_are_refused_before_anything_runs(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            OGMGE.Options(**options)

    def test_an_encoder_without_kernels_refuses_the_official_filter(self) -> None:
        task = Task({"flat": (4,), "map": (1, 4, 4)}, 3, 10, _encoder)
        refusal = OGMGE.refuses(OGMGE.Options(tensors="4d"), task)
        assert refusal == "tensors=4d finds no 4-D kernel in encoder flat; use tensors=matrices"
        assert OGMGE.refuses(OGMGE.Options(), task) is None
        assert OGMGE.refuses(OGMGE.Options(tensors="4d"), _task()) is None

    def test_one_modality_is_refused(self) -> None:
        refusal = OGMGE.refuses(OGMGE.Options(), Task({"a": (1, 4, 4)}, 3, 10, _encoder))
        assert refusal is not None
        assert "at least 2 modalities" in refusal
