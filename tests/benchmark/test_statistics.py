"""The statistics against scipy, against numbers computed by hand, and against simulated null hypotheses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmark.statistics import (
    hedges_g,
    holm,
    mean_ranks,
    paired_t,
    pooled_sd,
    power,
    smallest_detectable_difference,
    summarise,
    t_interval,
    welch,
    zero_variance,
)

A = [97.1, 96.4, 98.0, 97.3, 96.9]
B = [95.0, 96.1, 94.2, 95.9, 97.0]


def test_mean_sd_and_n_of_two_four_nine_by_hand() -> None:
    found = summarise([2.0, 4.0, 9.0])
    assert (found.mean, found.sd, found.n) == (5.0, math.sqrt(13.0), 3)


def test_one_value_has_a_mean_and_no_spread() -> None:
    found = summarise([7.5])
    assert found.mean == 7.5
    assert found.n == 1
    assert math.isnan(found.sd)


def test_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Found shape \(0,\)"):
        summarise([])


def test_a_constant_has_exactly_zero_sd_although_numpy_rounds() -> None:
    constant = [0.1] * 3
    assert np.std(constant, ddof=1) != 0
    assert zero_variance(constant)
    assert summarise(constant).sd == 0


def test_one_value_and_nearly_equal_values_are_not_zero_variance() -> None:
    assert not zero_variance([1.0])
    assert not zero_variance([1.0, 1.0 + 1e-12])


def test_t_interval_by_hand() -> None:
    # Mean 3, SD sqrt(2.5), n 5: 3 -+ 2.776445 * sqrt(0.5).
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.high) == pytest.approx((1.036757, 4.963243), abs=1e-6)


def test_t_interval_equals_scipy() -> None:
    expected = stats.ttest_1samp(A, 0.0).confidence_interval(0.9)
    found = t_interval(A, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_t_interval_contains_its_bounds_and_nothing_when_undefined() -> None:
    found = t_interval(A)
    assert found.low in found
    assert found.high + 1e-9 not in found
    assert 7.5 not in t_interval([7.5])


def test_welch_by_hand() -> None:
    # Means 3 and 6, variances 2.5 and 10: t = -3 / sqrt(2.5), df = 2.5^2 / (0.5^2 / 4 + 2^2 / 4) = 5.882353.
    found = welch([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert found.statistic == pytest.approx(-3 / math.sqrt(2.5))
    assert found.df == pytest.approx(6.25 / 1.0625)


@pytest.mark.parametrize("other", [B, B[:3]])
def test_welch_equals_scipy(other: list[float]) -> None:
    expected = stats.ttest_ind(A, other, equal_var=False)
    found = welch(A, other)
    assert (found.statistic, found.df, found.p) == pytest.approx(
        (expected.statistic, expected.df, expected.pvalue), rel=1e-10
    )


def test_welch_against_a_constant_is_the_one_sample_test() -> None:
    expected = stats.ttest_1samp(A, 95.0)
    found = welch(A, [95.0] * 5)
    assert (found.statistic, found.df, found.p) == pytest.approx((expected.statistic, 4.0, expected.pvalue))


@pytest.mark.parametrize(("a", "b"), [([1.0], B), (A, [1.0]), ([1.0, 1.0], [2.0, 2.0]), ([1.0, 1.0], [1.0, 1.0])])
def test_welch_is_undefined_for_one_value_and_for_two_constants(a: list[float], b: list[float]) -> None:
    assert math.isnan(welch(a, b).p)


def test_paired_t_equals_scipy() -> None:
    expected = stats.ttest_rel(A, B)
    found = paired_t(A, B)
    assert (found.statistic, found.df, found.p) == pytest.approx(
        (expected.statistic, expected.df, expected.pvalue), rel=1e-10
    )


def test_paired_t_finds_a_shift_that_welch_cannot_see() -> None:
    shifted = [value + 0.1 + 0.001 * place for place, value in enumerate(B)]
    assert paired_t(shifted, B).p < 1e-5
    assert welch(shifted, B).p > 0.8


def test_paired_t_is_undefined_when_the_differences_are_constant_up_to_rounding() -> None:
    assert 0.9 - 0.8 != 0.8 - 0.7
    assert math.isnan(paired_t([0.9, 0.8], [0.8, 0.7]).p)


def test_paired_t_refuses_different_numbers_of_seeds() -> None:
    with pytest.raises(ValueError, match="Found 5 and 3 values"):
        paired_t(A, B[:3])


def test_holm_by_hand() -> None:
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1 = 0.02 0.03 0.06 0.04, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_leaves_a_single_test_alone() -> None:
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


def test_holm_counts_a_test_that_could_not_be_made() -> None:
    found = holm([0.02, math.nan, 0.5])
    assert found[0] == pytest.approx(0.06)
    assert math.isnan(found[1])


def test_hedges_g_by_hand() -> None:
    # Difference -2, pooled SD 1, df 4: J = G(2) / (sqrt(2) G(1.5)) = 0.797885.
    assert hedges_g([1, 2, 3], [3, 4, 5]) == pytest.approx(-1.595769, abs=1e-6)


def test_hedges_g_pools_by_degrees_of_freedom() -> None:
    # Variances 1 (df 2) and 0.5 (df 1): pooled 2.5 / 3; J(3) = 0.723601.
    assert hedges_g([1, 2, 3], [0, 1]) == pytest.approx(0.723601 * 1.5 / math.sqrt(2.5 / 3), abs=1e-5)


def test_hedges_g_is_undefined_without_a_spread() -> None:
    assert math.isnan(hedges_g([1, 1], [2, 2]))
    assert math.isnan(hedges_g([1], [2, 3]))


def test_pooled_sd_is_the_root_mean_square() -> None:
    assert pooled_sd([3.0, 4.0]) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(("n", "effect"), [(64, 0.5), (26, 0.8), (5, 2.02444)])
def test_smallest_detectable_difference_matches_cohens_tables(n: int, effect: float) -> None:
    assert smallest_detectable_difference(1.0, n) == pytest.approx(effect, rel=0.01)


def test_smallest_detectable_difference_scales_with_the_sd_and_needs_two_values() -> None:
    assert smallest_detectable_difference(3.0, 5) == pytest.approx(3 * smallest_detectable_difference(1.0, 5))
    assert math.isnan(smallest_detectable_difference(1.0, 1))


def test_a_difference_of_that_size_is_found_in_four_of_five_simulated_experiments() -> None:
    generator = np.random.default_rng(7)
    shift = smallest_detectable_difference(2.0, 5)
    a, b = generator.normal(0.0, 2.0, (20_000, 5)), generator.normal(shift, 2.0, (20_000, 5))
    found = (stats.ttest_ind(a, b, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.01)
    welch_found = (stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue < 0.05).mean()
    assert welch_found == pytest.approx(0.8, abs=0.03)


def test_power_without_a_difference_is_alpha() -> None:
    assert power(0.0, 5) == pytest.approx(0.05)


def test_welch_keeps_its_level_at_five_seeds_with_unequal_spreads() -> None:
    generator = np.random.default_rng(1)
    rejected = [
        welch(a, b).p < 0.05
        for a, b in zip(generator.normal(0, 1, (6000, 5)), generator.normal(0, 3, (6000, 5)), strict=True)
    ]
    assert 0.03 < np.mean(rejected) < 0.06


def test_holm_over_welch_keeps_the_family_wise_error_below_alpha_at_five_seeds() -> None:
    generator = np.random.default_rng(2)
    families, methods = 3000, 9
    plain, adjusted = 0, 0
    for reference, others in zip(
        generator.normal(90, 1, (families, 5)), generator.normal(90, 1, (families, methods, 5)), strict=True
    ):
        p = [welch(other, reference).p for other in others]
        plain += min(p) < 0.05
        adjusted += holm(p).min() < 0.05
    standard_error = math.sqrt(0.05 * 0.95 / families)
    assert plain / families > 0.15
    assert 0.01 < adjusted / families < 0.05 + 2 * standard_error


def test_mean_ranks_by_hand() -> None:
    # Means per dataset: (2, 5), (3, 2), (0, 0) -> ranks (2, 1), (1, 2), (3, 3).
    found = mean_ranks([[[1, 2, 3], [4, 5, 6]], [[2, 3, 4], [1, 2, 3]], [[0, 0, 0], [0, 0, 0]]])
    assert found.mean.tolist() == [1.5, 1.5, 3.0]


def test_ties_share_their_rank() -> None:
    assert mean_ranks([[[1.0, 3.0]], [[2.0, 2.0]], [[0.0, 0.0]]]).mean.tolist() == [1.5, 1.5, 3.0]


def test_separated_methods_have_ranks_without_doubt_and_overlapping_ones_do_not() -> None:
    sure = mean_ranks([[[10, 11, 12]] * 3, [[1, 2, 3]] * 3])
    assert (sure.low.tolist(), sure.high.tolist()) == ([1.0, 2.0], [1.0, 2.0])
    unsure = mean_ranks([[[1, 2, 3], [2, 3, 4]], [[2, 3, 4], [1, 2, 3]]])
    assert (unsure.low[0], unsure.mean[0], unsure.high[0]) == (1.0, 1.5, 2.0)


def test_bootstrap_resamples_inside_a_dataset_never_across() -> None:
    # Within each dataset the order is certain although the datasets' ranges overlap.
    found = mean_ranks([[[10, 11], [100, 101]], [[8, 9], [98, 99]]])
    assert (found.low.tolist(), found.high.tolist()) == ([1.0, 2.0], [1.0, 2.0])


def test_mean_ranks_are_the_same_every_time() -> None:
    scores = [[A, B], [B, A], [A, A]]
    first, second = mean_ranks(scores), mean_ranks(scores)
    assert first.low.tolist() == second.low.tolist()
    assert first.high.tolist() == second.high.tolist()
