"""Declared passes, which conformance compares with counted ones, against what papers and official code imply."""

from __future__ import annotations

from typing import Any

import pytest

from benchmark.conformance_task import Widths, check_task
from benchmark.method import Plan
from benchmark.registry import METHODS

PLAN = Plan(epochs=100, train=2400, val=300, modalities=("m0", "m1"), batch_size=64)

COSTS = [
    ("joint", {}, 1.0),
    ("unimodal", {"modality": "m0"}, 0.5),
    ("greedy", {}, 1.0),
    ("ogm_ge", {}, 1.0),
    ("pcgrad", {"tasks": "modality"}, 1.0),
    ("pcgrad", {"tasks": "losses"}, 5 / 3),
    ("mmpareto", {}, 5 / 3),
    ("mmcosine", {}, 1.0),
    ("g_blending", {}, 3.0),
    ("g_blending", {"form": "offline"}, 3.0),
    ("diagnosing_relearning", {}, 1.02),
    # Joint warm-up in a sixth of the epochs, then one more forward pass per sample.
    ("remixing", {}, 1 / 6 + 5 / 6 * 4 / 3),
    # Alternating epochs: one of two modalities forward and backward, the other forward; then all of them.
    ("reconboost", {}, (2 / 3 + 1) / 2),
    ("gradnorm", {}, 1.0),
    ("agm", {}, 2.0),
    ("pmr", {}, 1.04),
    # One pass of the teachers and their training, about a joint run, before it.
    ("imcl", {}, 7 / 3),
    ("active_learning", {}, 1.0),
    ("lfm", {}, 1.0),
    ("arm", {}, 1.0),
    ("inforeg", {}, 1.05),
    ("mla", {}, 1.0),
    ("gmd", {}, 5 / 3),
    ("cggm", {}, 1.0),
    ("balgrad", {}, 7 / 3),
    ("rna_net", {}, 1.0),
    ("simmmdg", {}, 1.0),
    ("moosa", {}, 1.0),
    # Nearly every step has a forward pass of the teacher.
    ("cmrf", {}, 4 / 3),
    ("rgm", {}, 1.0),
    ("gmp", {}, 5 / 3),
    ("gmp_bench", {}, 7 / 3),
]
TOLERANCE = 0.10


@pytest.mark.parametrize(("name", "options", "predicted"), COSTS)
def test_passes_are_within_ten_percent_of_the_prediction(name: str, options: dict[str, Any], predicted: float) -> None:
    method = METHODS.load(name)
    declared = method(method.Options(**options), check_task(2, Widths.EQUAL)).expected_passes(PLAN)
    assert declared.relative == pytest.approx(predicted, rel=TOLERANCE)


def test_predictions_are_of_registered_methods() -> None:
    assert {name for name, _, _ in COSTS} <= set(METHODS.names())
