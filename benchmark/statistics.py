"""Statistics of a few seeds: pure functions on arrays, each small enough to check by hand.

Five seeds decide almost everything here, so parametric tests mark cells: a rank test cannot reject at n = 5
and a percentile bootstrap of one cell rejects 18 % of true null hypotheses. What is undefined (a spread of
one value, a test between two constants) is `nan`, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (ddof 1; nan for one value) and number of values."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Interval:
    """A closed interval in the unit of the values."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class TTest:
    """A two-sided t test: statistic, degrees of freedom and p value; all nan where the test is undefined."""

    statistic: float
    df: float
    p: float


@dataclass(frozen=True)
class MeanRanks:
    """Mean rank of every method over the datasets (1 is best), with bootstrap bounds; each `(methods,)`."""

    mean: Vector
    low: Vector
    high: Vector


UNDEFINED = TTest(math.nan, math.nan, math.nan)


def _vector(values: ArrayLike) -> Vector:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"Expected a non-empty vector of values, one per seed. Found shape {array.shape}.")
    return array


def zero_variance(values: ArrayLike) -> bool:
    """Return whether two or more values are all the same (`std` of a constant may round to non-zero)."""
    array = _vector(values)
    return array.size > 1 and bool((array == array[0]).all())


def summarise(values: ArrayLike) -> Summary:
    """Return mean, SD and n of values `(n,)`."""
    array = _vector(values)
    if zero_variance(array):
        return Summary(float(array[0]), 0.0, array.size)
    return Summary(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan, array.size)


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the t interval of the mean of values `(n,)`: nan for one value, a point for a constant."""
    found = summarise(values)
    if found.n < 2:
        return Interval(math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + confidence / 2, found.n - 1)) * found.sd / math.sqrt(found.n)
    return Interval(found.mean - half, found.mean + half)


def _two_sided(statistic: float, df: float) -> TTest:
    return TTest(statistic, df, float(2 * special.stdtr(df, -abs(statistic))))


def welch(a: ArrayLike, b: ArrayLike) -> TTest:
    """Return Welch's two-sided test of a `(n,)` and b `(m,)`; undefined for one value or two constants."""
    first, second = summarise(a), summarise(b)
    if min(first.n, second.n) < 2 or first.sd == second.sd == 0:
        return UNDEFINED
    squared = np.array([first.sd**2 / first.n, second.sd**2 / second.n])
    df = squared.sum() ** 2 / (squared**2 / [first.n - 1, second.n - 1]).sum()
    return _two_sided((first.mean - second.mean) / math.sqrt(squared.sum()), float(df))


def paired_t(a: ArrayLike, b: ArrayLike) -> TTest:
    """Return the two-sided paired test of a `(n,)` and b `(n,)`, position by position.

    Undefined for one pair and for constant differences; constant up to rounding, since 0.9 - 0.8 is not 0.8
    - 0.7. Raises ValueError when the two sides differ in length.
    """
    first, second = _vector(a), _vector(b)
    if first.size != second.size:
        raise ValueError(
            f"A paired test needs the same seeds on both sides. Found {first.size} and {second.size} values."
        )
    found = summarise(first - second)
    if found.n < 2 or found.sd <= 1e-12 * np.abs([first, second]).max():
        return UNDEFINED
    return _two_sided(found.mean / (found.sd / math.sqrt(found.n)), found.n - 1.0)


def holm(p_values: ArrayLike) -> Vector:
    """Return Holm's step-down adjusted p values `(m,)`.

    A test that could not be made (nan) stays nan but counts in the family: the family was declared before
    looking, so a missing seed must not make the remaining comparisons easier to pass.
    """
    p = np.asarray(p_values, dtype=np.float64)
    filled = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(filled, kind="stable")
    stepped = np.maximum.accumulate(filled[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return np.where(np.isnan(p), np.nan, adjusted)


def hedges_g(a: ArrayLike, b: ArrayLike) -> float:
    """Return Hedges' g of a `(n,)` minus b `(m,)`: difference over pooled SD, exactly corrected for small n.

    nan where the pooled SD is zero or unknown. Source: Hedges 1981, J(df) = G(df/2) / (sqrt(df/2)
    G((df-1)/2)).
    """
    first, second = summarise(a), summarise(b)
    if min(first.n, second.n) < 2 or first.sd == second.sd == 0:
        return math.nan
    df = first.n + second.n - 2
    pooled = math.sqrt(((first.n - 1) * first.sd**2 + (second.n - 1) * second.sd**2) / df)
    correction = math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)
    return correction * (first.mean - second.mean) / pooled


def pooled_sd(spreads: ArrayLike) -> float:
    """Return the root mean square of SDs `(k,)` of equally large cells."""
    return float(np.sqrt(np.mean(np.square(_vector(spreads)))))


def power(effect: float, n: int, alpha: float = 0.05) -> float:
    """Return the chance that a two-sided t test with n values per arm finds a difference of `effect` SDs."""
    if effect == 0:
        return alpha
    df = 2 * (n - 1)
    critical = stats.t.isf(alpha / 2, df)
    # The square of the statistic, a non-central F: scipy's non-central t gives nan for large effects at small n.
    return float(stats.ncf.sf(critical**2, 1, df, effect**2 * n / 2))


def smallest_detectable_difference(sd: float, n: int, alpha: float = 0.05, chance: float = 0.8) -> float:
    """Return the true difference, in the unit of `sd`, that a two-sided test finds with probability `chance`.

    n values per arm and one common SD, under which Welch's test has 2(n-1) degrees of freedom; nan below
    two values.
    """
    if n < 2:
        return math.nan
    ceiling = 1.0
    while power(ceiling, n, alpha) < chance:
        ceiling *= 2
    return sd * float(optimize.brentq(lambda effect: power(effect, n, alpha) - chance, 0.0, ceiling, xtol=1e-10))


def mean_ranks(
    scores: Sequence[Sequence[ArrayLike]], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> MeanRanks:
    """Rank the methods on every dataset by their mean (higher is better, ties share) and average the ranks.

    `scores[method][dataset]` holds values `(n,)`, one per seed. The bounds come from a bootstrap stratified
    by method and dataset: each stratum is resampled on its own, as in rliable (Agarwal et al., NeurIPS
    2021).
    """
    strata = [[_vector(values) for values in row] for row in scores]
    means = np.array([[values.mean() for values in row] for row in strata])
    generator = np.random.default_rng(seed)
    drawn = np.array(
        [[generator.choice(values, (resamples, values.size)).mean(axis=1) for values in row] for row in strata]
    )
    ranks = stats.rankdata(-drawn, axis=0).mean(axis=1)
    low, high = np.quantile(ranks, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=1)
    return MeanRanks(stats.rankdata(-means, axis=0).mean(axis=1), low, high)
