"""RGM's equations one by one: the plane, EAR, Syn and the three readings of Orth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.gradients import cosine
from benchmark.plane import accumulate, balance_factor, non_conflict, shares
from methods.rgm import Orthogonalisation, energy_rates, rebalancing, synergy_scales
from tests.methods.rgm_cases import FORMS, close, f64, steps


class TestPlane:
    def test_balance_factor_of_shares(self) -> None:
        share = f64([0.5, 0.6, 0.75, 0.9])
        close(balance_factor(torch.stack((share, 1 - share))), [1, 0.92, 0.5, -0.28])

    def test_energy_ratio_nine_to_one_gives_balance_minus_028(self) -> None:
        close(balance_factor(shares(f64([9, 1]))), -0.28)

    def test_balance_factor_turns_negative_at_an_energy_ratio_of_5_828427(self) -> None:
        assert balance_factor(shares(f64([5.8284, 1]))) > 0 > balance_factor(shares(f64([5.8285, 1])))
        close(shares(f64([3 + 2 * math.sqrt(2), 1]))[0], 0.853553)

    def test_global_gate_of_identical_gradients_and_equal_energies(self) -> None:
        slope = 4 * balance_factor(shares(f64([1, 1])))
        close(torch.sigmoid(slope * non_conflict(f64(25), f64([25, 25]))), 0.982014)

    def test_no_energy_yet_is_balanced(self) -> None:
        close(shares(f64([0, 0])), [0.5, 0.5])
        close(energy_rates(f64([0, 0])), [1, 1])

    def test_a_modality_without_energy_has_no_share_and_rate_one(self) -> None:
        close(shares(f64([0, 2])), [0, 1])
        close(energy_rates(f64([0, 2])), [1, 0.5])

    def test_non_conflict_is_the_cosine_and_zero_beside_a_zero_gradient(self) -> None:
        close(non_conflict(f64([-1, 0]), f64([[6, 0], [7, 7]])), [-0.154303, 0])

    @pytest.mark.parametrize(
        ("c", "expected"),
        [(0, [0.745356, 2.236068]), (0.5, [0.643496, 3.343702]), (1, [0.555556, 5]), (-1, [1, 1])],
    )
    def test_rebalancing_of_energies_nine_to_one(self, c: float, expected: list[float]) -> None:
        rates = energy_rates(f64([9, 1]))
        close(rates, [0.555556, 5])
        close(rebalancing(rates, f64(c)), expected)

    def test_three_energies(self) -> None:
        close(energy_rates(f64([4, 1, 1])), [0.5, 2, 2])
        share = shares(f64([4, 1]))
        close(share[0], 0.8)
        close(balance_factor(share), 0.28)

    @given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=5))
    def test_harmonic_mean_of_the_rates_is_one(self, energies: list[float]) -> None:
        assert float((1 / energy_rates(f64(energies))).mean()) == pytest.approx(1, rel=1e-9)

    def test_energy_of_gradient_descent_stays_below_theorem_1(self) -> None:
        theta, energy, eta = f64([[1.0]]), f64(0), 0.1
        for _ in range(50):
            energy = accumulate(energy, theta, eta)
            theta = theta - eta * theta
        close(energy, 0.052630)
        bound = 2 * eta * float(0.5 - 0.5 * theta.square())
        assert bound == pytest.approx(0.099997, abs=5e-7)
        assert float(energy) <= bound


class TestSynergy:
    def test_alphas_of_the_worked_pair(self) -> None:
        close(
            synergy_scales(f64([[5, 1], [5, 2]]), f64([[0.75], [0.25]])),
            [[1.224745, 1.5], [0.707107, 0.612372]],
        )

    @pytest.mark.parametrize(
        ("g_j", "before", "after"),
        [([[4, 3], [0.4, 0.3]], 0.327245, 0.8), ([[1, 0], [0, 0.01]], 0.316212, 0.181817)],
    )
    def test_cosine_after_synergy_is_the_energy_mean_of_block_cosines(
        self, g_j: list[list[float]], before: float, after: float
    ) -> None:
        blocks = f64([[[1, 0], [3, 0]], g_j])
        for share in (0.5, 0.9):
            scales = synergy_scales(blocks.square().sum(-1), f64([[share], [1 - share]]))
            projected = (scales[..., None] * blocks).flatten(1)
            close(cosine(*blocks.flatten(1)), before)
            close(cosine(*projected), after)

    def test_conserves_the_sum_of_squared_norms_and_not_of_norms(self) -> None:
        squares, share = f64([[25.0], [1.0]]), f64([[0.8], [0.2]])
        norms = synergy_scales(squares, share) * squares.sqrt()
        close(norms.sum(), 6.841053)
        close(norms.square().sum(), 26)
        close(norms[0] / norms[1], [2.0])

    def test_a_zero_block_stays_zero_and_scales_stay_finite(self) -> None:
        scales = synergy_scales(torch.tensor([[0.0], [1e30]]), torch.tensor([[0.5], [0.5]]))
        assert bool(scales.isfinite().all())
        assert float(scales[0] * 0) == 0


class TestOrthogonalStep:
    g_i, g_j = f64([1, 2, 0, 1]), f64([2, -1, 1, -1])
    share = f64([0.75, 0.25])

    @pytest.mark.parametrize(
        ("form", "o_i", "o_j", "residual"),
        [
            (
                "consistent",
                [0.222222, -0.111111, 0.111111, -0.111111],
                [0.037037, 0.074074, 0, 0.037037],
                -0.004115,
            ),
            (
                "printed",
                [0.074074, -0.037037, 0.037037, -0.037037],
                [0.111111, 0.222222, 0, 0.111111],
                -0.078189,
            ),
            (
                "exact",
                [0.085649, -0.030649, 0.040390, -0.035519],
                [0.130909, 0.237467, 0.004870, 0.116299],
                0,
            ),
        ],
    )
    def test_worked_pair(self, form: Orthogonalisation, o_i: list[float], o_j: list[float], residual: float) -> None:
        found = steps(self.g_i, self.g_j, self.share, form)
        close(found[0], o_i)
        close(found[1], o_j)
        close((self.g_i + found[0]) @ (self.g_j + found[1]), residual)

    def test_printed_form_overshoots_where_the_consistent_one_does_not(self) -> None:
        g_i, g_j, share = f64([3, 0]), f64([-0.5, math.sqrt(0.75)]), f64([0.9, 0.1])
        o_i, o_j = steps(g_i, g_j, share, "printed")
        close(o_j, [2.25, 0])
        close((g_i + o_i) @ (g_j + o_j), 5.239583)
        close(torch.cosine_similarity(g_i + o_i, g_j + o_j, dim=0), 0.906808)
        o_i, o_j = steps(g_i, g_j, share, "consistent")
        close(o_i, [-0.375, 0.649519])
        close(o_j, [0.25, 0])
        close((g_i + o_i) @ (g_j + o_j), -0.093750)
        close(torch.cosine_similarity(g_i + o_i, g_j + o_j, dim=0), -0.038462)

    @pytest.mark.parametrize(("c", "expected"), [(-0.5, -0.038462), (-0.9, -0.464331)])
    def test_residual_cosine_of_equal_unit_vectors(self, c: float, expected: float) -> None:
        g_i, g_j = f64([1, 0]), f64([c, math.sqrt(1 - c * c)])
        for form in ("consistent", "printed"):
            o_i, o_j = steps(g_i, g_j, f64([0.5, 0.5]), form)
            close(torch.cosine_similarity(g_i + o_i, g_j + o_j, dim=0), expected)
        assert expected == pytest.approx((c**3 / 4) / (1 - 0.75 * c**2), abs=5e-7)

    @given(st.integers(0, 10**6), st.floats(0.02, 0.98))
    def test_exact_form_is_orthogonal_and_stationary(self, seed: int, weight: float) -> None:
        g_i, g_j = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        o_i, o_j = steps(g_i, g_j, f64([weight, 1 - weight]), "exact")
        new_i, new_j = g_i + o_i, g_j + o_j
        assert abs(float(new_i @ new_j)) < 1e-9
        # Lagrange: w_i O_i and w_j O_j are the same multiple of the other's new gradient.
        multiplier = weight * float(o_i @ new_j) / float(new_j @ new_j)
        torch.testing.assert_close(weight * o_i, multiplier * new_j, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close((1 - weight) * o_j, multiplier * new_i, rtol=1e-7, atol=1e-9)

    @given(st.integers(0, 10**6), st.floats(0.02, 0.98))
    def test_exact_form_moves_no_more_than_any_rotation_in_the_plane(self, seed: int, weight: float) -> None:
        g_i, g_j = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        o_i, o_j = steps(g_i, g_j, f64([weight, 1 - weight]), "exact")
        cost = float(weight * (o_i @ o_i) + (1 - weight) * (o_j @ o_j))
        for angle in torch.linspace(0, math.pi, 361, dtype=torch.float64):
            # For orthogonal directions u, v the nearest vectors are the projections on them.
            u, v = torch.stack((angle.cos(), angle.sin())), torch.stack((-angle.sin(), angle.cos()))
            rest_i, rest_j = g_i - (g_i @ u) * u, g_j - (g_j @ v) * v
            assert cost <= float(weight * (rest_i @ rest_i) + (1 - weight) * (rest_j @ rest_j)) + 1e-12

    @pytest.mark.parametrize("c", [0.999, -0.999, 0.9999])
    def test_exact_form_is_orthogonal_for_almost_parallel_gradients(self, c: float) -> None:
        g_i, g_j = f64([1, 0]), f64([c, math.sqrt(1 - c * c)])
        o_i, o_j = steps(g_i, g_j, f64([0.5, 0.5]), "exact")
        close((g_i + o_i) @ (g_j + o_j), 0, digits=10)

    def test_exact_form_halves_identical_gradients(self) -> None:
        o_i, o_j = steps(self.g_i, self.g_i, f64([0.5, 0.5]), "exact")
        torch.testing.assert_close(o_i, -0.5 * self.g_i, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(o_j, -0.5 * self.g_i, rtol=1e-6, atol=1e-6)

    @given(st.integers(0, 10**6), st.floats(0.02, 0.98))
    def test_consistent_form_leaves_at_most_a_quarter_of_dot_times_cosine_squared(
        self, seed: int, weight: float
    ) -> None:
        g_i, g_j = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        o_i, o_j = steps(g_i, g_j, f64([weight, 1 - weight]))
        dot = float(g_i @ g_j)
        cosine = float(torch.cosine_similarity(g_i, g_j, dim=0))
        residual = float((g_i + o_i) @ (g_j + o_j))
        assert abs(residual) <= abs(dot) * cosine**2 / 4 + 1e-12
        assert residual * dot >= 0

    @pytest.mark.parametrize("form", FORMS)
    def test_nothing_is_added_beside_a_zero_gradient(self, form: Orthogonalisation) -> None:
        for g_i, g_j in ((self.g_i, 0 * self.g_j), (0 * self.g_i, self.g_j), (0 * self.g_i, 0 * self.g_j)):
            for o in steps(g_i, g_j, self.share, form):
                close(o, [0, 0, 0, 0])
