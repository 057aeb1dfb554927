"""Calibration and misclassification detection against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmark.reliability import (
    calibration_error,
    detection_auroc,
    false_positive_rate,
    reliability,
    risk_coverage_area,
)


def predictions(*judged: tuple[float, bool]) -> tuple[Tensor, Tensor]:
    """Logits of two classes and labels, from each prediction's confidence and whether it is right."""
    logits = torch.tensor([[math.log(confidence), math.log(1 - confidence)] for confidence, _ in judged])
    return logits, torch.tensor([0 if right else 1 for _, right in judged])


FIVE = predictions((0.95, True), (0.9, True), (0.8, False), (0.7, True), (0.6, False))


def test_calibration_error_weighs_the_gap_of_each_bin_by_its_samples() -> None:
    # One sample in a bin each: |1-.95|, |1-.9|, |0-.8|, |1-.7|, |0-.6|.
    assert calibration_error(*FIVE) == pytest.approx((0.05 + 0.1 + 0.8 + 0.3 + 0.6) / 5)
    # Two in one bin (0.933 .. 1): accuracy 1/2, confidence 0.96.
    assert calibration_error(*predictions((0.95, True), (0.97, False))) == pytest.approx(0.46)


def test_auroc_is_the_share_of_right_wrong_pairs_in_the_right_order() -> None:
    # Of 3 x 2 pairs, only the right one at 0.7 is below the wrong one at 0.8.
    assert detection_auroc(*FIVE) == pytest.approx(5 / 6)


def test_aurc_is_the_mean_error_rate_of_the_most_confident_k() -> None:
    assert risk_coverage_area(*FIVE) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


def test_aurc_does_not_depend_on_the_order_of_equal_confidences() -> None:
    # The wrong one is first or second with equal chance: (1/2)/1, then 1/2, then 1/3.
    for tied in (((0.9, True), (0.9, False)), ((0.9, False), (0.9, True))):
        assert risk_coverage_area(*predictions(*tied, (0.6, True))) == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_fpr_counts_the_wrong_ones_above_the_threshold_that_accepts_95_percent_of_the_right_ones() -> None:
    # All 3 right ones must be accepted: the threshold is 0.7, which lets 0.8 pass and stops 0.6.
    assert false_positive_rate(*FIVE) == pytest.approx(1 / 2)
    # Of 20 right ones 19 suffice: the threshold is 0.8, not 0.6.
    many = [(0.9, True)] * 18 + [(0.8, True), (0.6, True)] + [(0.7, False), (0.85, False)]
    assert false_positive_rate(*predictions(*many)) == pytest.approx(1 / 2)


@pytest.mark.parametrize(("right", "area"), [(True, 0.0), (False, 1.0)])
def test_detection_is_undefined_without_both_kinds_and_aurc_is_at_its_end(right: bool, area: float) -> None:
    found = reliability(*predictions((0.9, right), (0.7, right)))
    assert (found["auroc"], found["fpr95"], found["aurc"]) == (None, None, area)


def test_confidences_that_float32_cannot_tell_apart_are_ranked() -> None:
    logits = torch.tensor([[40.0, 0.0], [30.0, 0.0]])
    assert logits.softmax(1)[0, 0] == logits.softmax(1)[1, 0] == 1
    assert detection_auroc(logits, torch.tensor([0, 1])) == 1.0
