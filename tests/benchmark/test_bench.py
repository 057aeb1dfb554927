"""Step costs: the suite's loop and the proposed methods stay within their limits."""

from __future__ import annotations

import sys

import pytest

from benchmark.bench import Timing, limited, ratio


def test_the_ratio_is_the_median_of_neighbouring_turns() -> None:
    subject = iter([99.0, 2.0, 3.0, 40.0])
    yardstick = iter([99.0, 1.0, 1.0, 2.0])
    assert ratio(lambda: next(subject), lambda: next(yardstick), rounds=3) == 3.0


def test_a_timing_over_its_limit_says_so() -> None:
    assert Timing("a", "b", "small", 1.2, limit=1.1).over
    assert not Timing("a", "b", "small", 1.0, limit=1.1).over
    assert not Timing("a", "b", "small", 9.0).over
    assert str(Timing("a", "b", "small", 1.0, 1.1, 1.67)).endswith(
        "1.00x b (small), declared passes 1.67x, limit 1.10x"
    )


@pytest.mark.slow
def test_steps_stay_within_their_limits() -> None:
    timings = list(limited())
    sys.stdout.write("".join(f"{timing}\n" for timing in timings))
    assert [timing.subject for timing in timings] == ["joint", "joint", "gmp", "gmp_bench", "rgm"]
    assert [str(timing) for timing in timings if timing.over] == []
