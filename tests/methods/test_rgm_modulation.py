"""Invariants of RGM's modulation under every reading, numerical edges, and refused calls."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmark.errors import UsageError
from benchmark.plane import shares
from methods.rgm import COMPONENTS, Orthogonalisation, energy_rates, modulate, rebalancing
from tests.methods.rgm_cases import FORMS, f64, pair, random_gradients, steps

SUBSETS = [subset for n in range(1, 4) for subset in itertools.combinations(COMPONENTS, n)]


class TestInvariants:
    energies: ClassVar = {"m0": 5.0, "m1": 1.0, "m2": 0.3}

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("granularity", ["sample", "batch"])
    @given(seed=st.integers(0, 10**6), scale=st.floats(1e-4, 1e4))
    def test_scaling_the_loss_scales_the_result(
        self, form: Orthogonalisation, granularity: Any, seed: int, scale: float
    ) -> None:
        gradients = random_gradients(seed)
        readings: Any = {"orthogonalisation": form, "granularity": granularity, "blocks": 4}
        once = modulate(gradients, self.energies, **readings)
        scaled_energies = {name: scale**2 * energy for name, energy in self.energies.items()}
        scaled = modulate({m: scale * g for m, g in gradients.items()}, scaled_energies, **readings)
        for name, value in once.items():
            torch.testing.assert_close(scaled[name], scale * value, rtol=1e-6, atol=1e-12 * scale)

    @pytest.mark.parametrize("modalities", [2, 3])
    @pytest.mark.parametrize("form", FORMS)
    def test_reordering_the_modalities_reorders_the_result(self, modalities: int, form: Orthogonalisation) -> None:
        gradients = random_gradients(1, modalities)
        straight = modulate(gradients, self.energies, orthogonalisation=form)
        backwards = modulate(dict(reversed(gradients.items())), self.energies, orthogonalisation=form)
        assert list(straight) == list(gradients)
        for name, value in straight.items():
            torch.testing.assert_close(backwards[name], value)

    def test_reordering_the_samples_reorders_the_result(self) -> None:
        order = torch.tensor([3, 0, 4, 2, 1])
        gradients = random_gradients(2)
        for granularity in ("sample", "batch"):
            straight = modulate(gradients, self.energies, granularity=granularity)
            mixed = modulate({m: g[order] for m, g in gradients.items()}, self.energies, granularity=granularity)
            for name, value in straight.items():
                torch.testing.assert_close(mixed[name], value[order])

    @pytest.mark.parametrize("components", [("ear",), ("syn",), ("ear", "syn")])
    @given(seed=st.integers(0, 10**6))
    def test_without_orth_every_block_is_a_positive_multiple(self, components: Any, seed: int) -> None:
        gradients = random_gradients(seed)
        found = modulate(gradients, self.energies, blocks=4, components=components)
        for name, gradient in gradients.items():
            before, after = gradient.unflatten(1, (4, -1)), found[name].unflatten(1, (4, -1))
            torch.testing.assert_close(
                torch.cosine_similarity(before, after, dim=-1), torch.ones(5, 4, dtype=torch.float64)
            )

    def test_one_block_keeps_the_direction_without_orth(self) -> None:
        gradients = random_gradients(3)
        found = modulate(gradients, self.energies, blocks=1, components=("ear", "syn"))
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                torch.cosine_similarity(gradient, found[name]), torch.ones(5, dtype=torch.float64)
            )

    def test_no_components_return_the_very_same_gradients(self) -> None:
        gradients = random_gradients(4)
        found = modulate(gradients, self.energies, components=())
        assert all(found[name] is gradient for name, gradient in gradients.items())

    def test_the_input_is_not_changed(self) -> None:
        gradients = random_gradients(5, modalities=3)
        copies = {name: gradient.clone() for name, gradient in gradients.items()}
        modulate(gradients, self.energies)
        assert all(torch.equal(gradients[name], copy) for name, copy in copies.items())

    @pytest.mark.parametrize("components", SUBSETS)
    def test_three_modalities_are_the_mean_over_pairs_with_a_common_rate(self, components: Any) -> None:
        gradients = random_gradients(6, modalities=3)
        found = modulate(gradients, self.energies, components=components)
        rates = dict(zip(self.energies, energy_rates(f64(list(self.energies.values()))), strict=True))
        for name, gradient in gradients.items():
            parts = []
            for other in gradients.keys() - {name}:
                duo = {m: gradients[m] for m in (name, other)}
                part = modulate(duo, self.energies, components=components)[name]
                if "ear" in components:
                    # Alone, the pair has another mean energy: exchange EAR's factor on all but Orth's part.
                    rest = tuple(c for c in components if c != "orth")
                    kept = modulate(duo, self.energies, components=rest)[name]
                    pair_rate = energy_rates(f64([self.energies[name], self.energies[other]]))[0]
                    cosine = torch.cosine_similarity(gradient, gradients[other])[:, None]
                    factor = rebalancing(rates[name], cosine) / rebalancing(pair_rate, cosine)
                    part = part + (factor - 1) * kept
                parts.append(part)
            torch.testing.assert_close(found[name], torch.stack(parts).mean(0))

    def test_batch_granularity_of_one_sample_is_sample_granularity(self) -> None:
        gradients = random_gradients(7, batch=1)
        sample = modulate(gradients, self.energies, granularity="sample")
        batch = modulate(gradients, self.energies, granularity="batch")
        assert all(torch.equal(sample[name], batch[name]) for name in gradients)

    @pytest.mark.parametrize("form", FORMS)
    def test_batch_granularity_treats_the_batch_as_one_vector(self, form: Orthogonalisation) -> None:
        gradients = random_gradients(7)
        rows = {m: g.unflatten(1, (4, 2)).transpose(0, 1).reshape(1, -1) for m, g in gradients.items()}
        vectors = modulate(rows, self.energies, blocks=4, orthogonalisation=form)
        batch = modulate(gradients, self.energies, blocks=4, orthogonalisation=form, granularity="batch")
        for name, vector in vectors.items():
            expected = vector.reshape(4, 5, 2).transpose(0, 1).reshape(5, 8)
            torch.testing.assert_close(batch[name], expected)

    def test_batch_granularity_scales_all_samples_of_a_block_alike(self) -> None:
        gradients = random_gradients(8)
        found = modulate(gradients, self.energies, blocks=4, granularity="batch", components=("ear", "syn"))
        for name, gradient in gradients.items():
            factors = (found[name] / gradient).unflatten(1, (4, -1))
            torch.testing.assert_close(factors, factors[:1, :, :1].expand_as(factors))

    def test_clamped_gate_differs_only_beyond_a_share_of_0854(self) -> None:
        gradients = random_gradients(9)
        for ratio, same in ((5.8, True), (5.9, False)):
            energies = {"m0": ratio, "m1": 1.0}
            printed = modulate(gradients, energies)
            clamped = modulate(gradients, energies, gate="clamped")
            assert torch.equal(printed["m0"], clamped["m0"]) is same

    def test_clamped_gate_is_one_half_when_imbalanced(self) -> None:
        g_i, g_j = f64([1, 2, 0, 1]), f64([2, -1, 1, -1])
        o_i, _ = steps(g_i, g_j, shares(f64([20, 1])))
        found, _ = pair(g_i, g_j, (20, 1), components=("orth",), gate="clamped")
        torch.testing.assert_close(found, g_i + 0.5 * o_i)

    def test_orth_in_conflict_only_leaves_aligned_samples_alone(self) -> None:
        gradients = random_gradients(10)
        conflict = (gradients["m0"] * gradients["m1"]).sum(1) < 0
        assert 0 < int(conflict.sum()) < 5
        always = modulate(gradients, self.energies, components=("orth",))["m0"]
        gated = modulate(gradients, self.energies, components=("orth",), orth_when="conflict")["m0"]
        assert torch.equal(gated[conflict], always[conflict])
        assert torch.equal(gated[~conflict], gradients["m0"][~conflict])
        assert not torch.equal(always[~conflict], gradients["m0"][~conflict])


class TestNumericalEdges:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("granularity", ["sample", "batch"])
    @pytest.mark.parametrize("energies", [(1.0, 1.0), (0.0, 0.0), (0.0, 3.0), (1e-15, 1e15), (1e300, 1e300)])
    def test_a_dead_modality_stays_zero_and_the_other_finite(
        self, form: Orthogonalisation, granularity: Any, energies: tuple[float, float]
    ) -> None:
        gradients = {"dead": torch.zeros(3, 8), "alive": torch.randn(3, 8)}
        found = modulate(
            gradients,
            dict(zip(gradients, energies, strict=True)),
            orthogonalisation=form,
            granularity=granularity,
        )
        assert torch.equal(found["dead"], gradients["dead"])
        assert bool(found["alive"].isfinite().all())

    def test_a_zero_block_and_a_zero_row_stay_zero(self) -> None:
        gradients = {m: g.float() for m, g in random_gradients(1).items()}
        gradients["m0"][:, :2] = 0
        gradients["m0"][4] = 0
        found = modulate(gradients, {"m0": 2.0, "m1": 1.0}, blocks=4, components=("ear", "syn"))["m0"]
        assert float(found[:, :2].abs().max()) == 0
        assert float(found[4].abs().max()) == 0
        assert bool(found.isfinite().all())

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("scale", [1e-15, 1e-9, 1.0, 1e15])
    def test_float32_agrees_with_float64_at_any_scale(self, form: Orthogonalisation, scale: float) -> None:
        exact = {m: scale * g for m, g in random_gradients(2).items()}
        rough = {m: g.float() for m, g in exact.items()}
        energies = {"m0": 2.0, "m1": 1.0}
        found = modulate(rough, energies, orthogonalisation=form)
        for name, value in modulate(exact, energies, orthogonalisation=form).items():
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5 * scale)

    def test_half_precision_is_computed_in_float32(self) -> None:
        gradients = {m: (1e-3 * g).to(torch.float16) for m, g in random_gradients(3).items()}
        energies = {"m0": 2.0, "m1": 1.0}
        found = modulate(gradients, energies)
        wide = modulate({m: g.float() for m, g in gradients.items()}, energies)
        for name, value in wide.items():
            assert torch.equal(found[name], value.to(torch.float16))

    def test_energies_may_be_tensors(self) -> None:
        gradients = random_gradients(4)
        numbers = modulate(gradients, {"m0": 2.0, "m1": 0.7})
        tensors = modulate(gradients, {"m0": f64(2.0), "m1": f64(0.7)})
        assert all(torch.equal(numbers[name], tensors[name]) for name in gradients)


class TestRefusals:
    energies: ClassVar = {"m0": 1.0, "m1": 1.0}

    @pytest.mark.parametrize(
        ("readings", "message"),
        [
            ({"orthogonalisation": "print"}, "Unknown orthogonalisation 'print'. Did you mean 'printed'?"),
            ({"components": ("ear", "sym")}, "Unknown component 'sym'. Did you mean 'syn'?"),
            ({"gate": "open"}, "Unknown gate 'open'. Known: clamped, printed."),
            ({"granularity": "epoch"}, "Unknown granularity 'epoch'. Known: batch, sample."),
            ({"orth_when": "never"}, "Unknown orth_when 'never'"),
            ({"blocks": 3}, "blocks=3 does not divide the feature width 8"),
            ({"blocks": 0}, "blocks=0"),
        ],
    )
    def test_a_bad_reading(self, readings: Any, message: str) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            modulate(random_gradients(0), self.energies, **readings)

    def test_blocks_do_not_matter_without_syn(self) -> None:
        found = modulate(random_gradients(0), self.energies, blocks=3, components=("ear", "orth"))
        assert found["m0"].shape == (5, 8)

    @pytest.mark.parametrize(
        "gradients",
        [
            {},
            {"m0": torch.zeros(2, 8)},
            {"m0": torch.zeros(2, 8), "m1": torch.zeros(2, 4)},
            {"m0": torch.zeros(8), "m1": torch.zeros(8)},
        ],
    )
    def test_shapes_that_cannot_be_compared(self, gradients: dict[str, Tensor]) -> None:
        with pytest.raises(UsageError, match=r"two or more gradients of one shape \(B, d\)"):
            modulate(gradients, self.energies)

    @pytest.mark.parametrize("energies", [{"m0": 1.0}, {"m0": 1.0, "m1": -1.0}, {"m0": 1.0, "m1": math.nan}])
    def test_a_missing_or_impossible_energy(self, energies: dict[str, float]) -> None:
        with pytest.raises(UsageError, match="energy, at least 0, of 'm1'"):
            modulate(random_gradients(0), energies)
