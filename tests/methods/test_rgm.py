"""RGM: the worked modulations, the energies it settles at, and the method around it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from benchmark.plane import accumulate, balance_factor, non_conflict, shares
from benchmark.task import Task
from methods.rgm import RGM, Orthogonalisation, modulate
from tests.methods.rgm_cases import close, f64, pair, random_gradients, steps


class TestWorkedModulation:
    g_i, g_j = f64([1, 2, 0, 1]), f64([2, -1, 1, -1])

    @pytest.mark.parametrize("form", ["consistent", "printed"])
    def test_identical_gradients_shrink_by_0991007(self, form: Orthogonalisation) -> None:
        g = f64([3, 0, 4, 0])
        for found in pair(g, g, (1, 1), blocks=2, orthogonalisation=form):
            close(found, [2.973021, 0, 3.964028, 0])
            close(found / g.clamp_min(1), [0.991007, 0, 0.991007, 0])

    @pytest.mark.parametrize(
        ("form", "g_i", "g_j"),
        [
            (
                "consistent",
                [1.065231, 1.810158, 0.064061, 0.860760],
                [2.309852, -1.101542, 1.238945, -1.217591],
            ),
            (
                "printed",
                [0.979817, 1.852865, 0.021354, 0.903467],
                [2.352560, -1.016128, 1.238945, -1.174884],
            ),
        ],
    )
    def test_worked_pair(self, form: Orthogonalisation, g_i: list[float], g_j: list[float]) -> None:
        found = pair(self.g_i, self.g_j, (3, 1), blocks=2, orthogonalisation=form)
        close(found[0], g_i)
        close(found[1], g_j)

    def test_worked_pair_from_its_printed_parts(self) -> None:
        # Eq. 15 put together by hand from the printed r, alpha, gates and O.
        gates, alpha_i, alpha_j = f64([0.5, 0.195570]), f64([1.224745, 1.5]), f64([0.707107, 0.612372])
        scale_i = (0.842442 * (1 + gates * (alpha_i - 1))).repeat_interleave(2)
        scale_j = (1.340572 * (1 + gates * (alpha_j - 1))).repeat_interleave(2)
        o_i, o_j = steps(self.g_i, self.g_j, f64([0.75, 0.25]))
        found = pair(self.g_i, self.g_j, (3, 1), blocks=2)
        torch.testing.assert_close(found[0], scale_i * self.g_i + (1 - 0.423455) * o_i, rtol=0, atol=5e-6)
        torch.testing.assert_close(found[1], scale_j * self.g_j + (1 - 0.423455) * o_j, rtol=0, atol=5e-6)


class TestEndToEnd:
    """Two samples, four features, three classes, a linear head on the concatenation."""

    z1: ClassVar = [[1, 0, 2, -1], [0.5, 1, -1, 0]]
    z2: ClassVar = [[0, 1, 1, 0.5], [1, -1, 0, 2]]
    head: ClassVar = [
        [0.4, -0.2, 0.1, 0.3, 0.1, 0, -0.3, 0.2],
        [-0.1, 0.5, 0.2, -0.4, 0.3, -0.2, 0.1, 0.1],
        [0.2, 0.1, -0.5, 0.1, -0.2, 0.4, 0.2, -0.3],
    ]

    @pytest.fixture
    def raw(self) -> dict[str, Tensor]:
        features = {"1": f64(self.z1).requires_grad_(), "2": f64(self.z2).requires_grad_()}
        logits = torch.cat(list(features.values()), dim=1) @ f64(self.head).T
        loss = functional.cross_entropy(logits, torch.tensor([0, 2]))
        close(loss.detach(), 1.620588)
        return dict(zip(features, torch.autograd.grad(loss, list(features.values())), strict=True))

    @pytest.fixture
    def energies(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: accumulate(0.0, gradient, 1e-3) for name, gradient in raw.items()}

    def test_energies_and_plane(self, raw: dict[str, Tensor], energies: dict[str, Tensor]) -> None:
        close(energies["1"], 2.079805e-07, digits=13)
        close(energies["2"], 1.625524e-07, digits=13)
        share = shares(torch.stack(tuple(energies.values())))
        close(share[0], 0.561301)
        close(balance_factor(share), 0.969937)
        dot, squares = (raw["1"] * raw["2"]).sum(1), torch.stack([g.square().sum(1) for g in raw.values()])
        close(non_conflict(dot, squares), [0.047186, -0.642145])

    def test_consistent_form(self, raw: dict[str, Tensor], energies: dict[str, Tensor]) -> None:
        found = modulate(raw, energies, blocks=2)
        close(
            found["1"],
            [[-0.139001, 0.196030, -0.025454, -0.182964], [0.008396, -0.010628, 0.246976, -0.042023]],
        )
        close(
            found["2"],
            [[0.032529, -0.022622, 0.165405, -0.076054], [0.176075, -0.217393, -0.037462, 0.169052]],
        )

    def test_printed_form(self, raw: dict[str, Tensor], energies: dict[str, Tensor]) -> None:
        found = modulate(raw, energies, blocks=2, orthogonalisation="printed")
        close(found["1"][1], [-0.004746, 0.005592, 0.254561, -0.055465])

    @pytest.mark.parametrize(
        ("components", "norms"),
        [
            ((), (0.456049, 0.403178)),
            (("ear",), (0.437831, 0.416047)),
            (("syn",), (0.452383, 0.405687)),
            (("orth",), (0.416538, 0.362010)),
            (("ear", "syn"), (0.434426, 0.418884)),
            (("ear", "orth"), (0.397765, 0.375090)),
            (("syn", "orth"), (0.411993, 0.364663)),
            (("ear", "syn", "orth"), (0.393471, 0.378097)),
        ],
    )
    def test_norms_of_every_ablation(
        self,
        raw: dict[str, Tensor],
        energies: dict[str, Tensor],
        components: Any,
        norms: tuple[float, float],
    ) -> None:
        found = modulate(raw, energies, blocks=2, components=components)
        close(torch.stack([gradient.norm() for gradient in found.values()]), norms)


class TestStationaryRatio:
    """Energies that grow by the squared norms of the gradients at hand, until their ratio is stationary."""

    @pytest.mark.parametrize(("c", "exponent"), [(-1, 0.5), (0, 0.0), (1, -0.5)])
    def test_norm_ratio_after_ear_is_kappa_to_minus_half_the_cosine(self, c: float, exponent: float) -> None:
        kappa = 16.0  # raw norms 4 and 1 have accumulated energies 16 and 1
        g_j = f64([c, math.sqrt(1 - c**2)])
        found = pair(f64([4, 0]), g_j, (kappa, 1), components=("ear",))
        assert float(found[0].norm() / found[1].norm()) == pytest.approx(kappa**exponent)

    @pytest.mark.parametrize(("c", "expected"), [(0, 4), (1, 2.519842)])
    def test_modulated_energies_settle_at_kappa_to_one_over_two_plus_cosine(self, c: float, expected: float) -> None:
        g_i, g_j = f64([4, 0]), f64([c, math.sqrt(1 - c**2)])
        e_i, e_j = 1.0, 1.0
        for step in range(3000):
            found = pair(g_i, g_j, (e_i, e_j), components=("ear",))
            rate = 1 / (step + 1)  # a running mean finds the fixed point of the accumulated ratio
            e_i = (1 - rate) * e_i + rate * float(found[0].square().sum())
            e_j = (1 - rate) * e_j + rate * float(found[1].square().sum())
        assert e_i / e_j == pytest.approx(expected, rel=2e-3)


class Encoder(nn.Linear):
    width = 8


class TestMethod:
    def task(self, widths: tuple[int, ...] = (8, 8)) -> Task:
        def encoder(name: str, shape: tuple[int, ...]) -> nn.Module:
            module = Encoder(shape[0], widths[int(name[1])])
            module.width = module.out_features
            return module

        return Task({f"m{k}": (4,) for k in range(len(widths))}, 3, 10, encoder)

    def run(self, method: RGM, gradients: dict[str, Tensor], lr: float) -> dict[str, Tensor]:
        stand_in: Any = SimpleNamespace(lr=lr)
        return method.modulate_features(gradients, stand_in, stand_in, stand_in)

    def test_energy_of_this_step_counts_before_it_is_used(self) -> None:
        method, gradients = RGM(RGM.Options(), self.task()), random_gradients(0)
        found = self.run(method, gradients, lr=0.5)
        energies = {name: 0.25 * float(g.square().sum()) for name, g in gradients.items()}
        assert {name: float(e) for name, e in method.energies.items()} == pytest.approx(energies)
        for name, expected in modulate(gradients, energies).items():
            torch.testing.assert_close(found[name], expected)

    def test_energies_are_never_reset_and_follow_the_schedule(self) -> None:
        method, gradients = RGM(RGM.Options(), self.task()), random_gradients(0)
        for lr in (1.0, 0.1):
            self.run(method, gradients, lr)
        assert float(method.energies["m0"]) == pytest.approx(1.01 * float(gradients["m0"].square().sum()))

    def test_modulated_energies_start_balanced(self) -> None:
        method, gradients = RGM(RGM.Options(energy="modulated"), self.task()), random_gradients(0)
        found = self.run(method, gradients, lr=0.5)
        for name, expected in modulate(gradients, {"m0": 0.0, "m1": 0.0}).items():
            torch.testing.assert_close(found[name], expected)
            assert float(method.energies[name]) == pytest.approx(0.25 * float(expected.square().sum()))

    @pytest.mark.parametrize(
        "options",
        [
            {"blocks": 2},
            {"orthogonalisation": "printed"},
            {"orthogonalisation": "exact"},
            {"gate": "clamped"},
            {"orth_when": "conflict"},
            {"granularity": "batch"},
            {"components": ["ear", "orth"]},
        ],
    )
    def test_options_reach_the_mathematics(self, options: dict[str, Any]) -> None:
        gradients, energies = random_gradients(3), {"m0": 9.0, "m1": 1.0}
        method = RGM(RGM.Options(**options), self.task())
        method.load_state_dict({"energies": energies})
        found = self.run(method, gradients, lr=0.0)
        expected = modulate(gradients, energies, **options)
        default = modulate(gradients, energies)
        assert all(torch.equal(found[name], expected[name]) for name in gradients)
        assert not torch.equal(found["m0"], default["m0"])

    def test_the_state_restores_exactly(self) -> None:
        method, gradients = RGM(RGM.Options(), self.task()), random_gradients(0)
        self.run(method, gradients, lr=0.3)
        resumed = RGM(RGM.Options(), self.task())
        resumed.load_state_dict(method.state_dict())
        found, expected = self.run(resumed, gradients, lr=0.3), self.run(method, gradients, lr=0.3)
        assert all(torch.equal(found[name], expected[name]) for name in gradients)
        assert resumed.state_dict() == method.state_dict()

    def test_no_components_change_nothing(self) -> None:
        method, gradients = RGM(RGM.Options(**RGM.noop), self.task()), random_gradients(0)
        found = self.run(method, gradients, lr=0.3)
        assert all(found[name] is gradients[name] for name in gradients)

    @pytest.mark.parametrize(
        ("widths", "options", "reason"),
        [
            ((8,), {}, "needs at least 2 modalities"),
            ((8, 16), {}, "needs encoders of equal width"),
            ((6, 6), {"blocks": 4}, "blocks=4 does not divide the feature width 6"),
        ],
    )
    def test_refusals(self, widths: tuple[int, ...], options: dict[str, Any], reason: str) -> None:
        refusal = RGM.refuses(RGM.Options(**options), self.task(widths))
        assert refusal is not None
        assert reason in refusal

    def test_accepts_three_modalities_and_any_width_without_syn(self) -> None:
        assert RGM.refuses(RGM.Options(), self.task((8, 8, 8))) is None
        assert RGM.refuses(RGM.Options(components=("ear",)), self.task((6, 6))) is None

    @pytest.mark.parametrize("options", [{"components": ["sym"]}, {"blocks": 0}, {"gate": "open"}, {"l": 8}])
    def test_bad_options_are_refused_before_anything_runs(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            RGM.Options(**options)
