"""Whether a model knows when it is wrong: pure functions on logits `(N, C)` and labels `(N,)`, each a fraction.

Confidence is the largest softmax probability throughout, in float64: in float32 confident predictions tie at 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15
ACCEPTED = 95
"""Share of the right predictions (%) that the threshold of `false_positive_rate` accepts."""


def _judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each prediction's confidence `(N,)` and whether it is right `(N,)`."""
    confidence, predicted = logits.double().softmax(1).max(1)
    return confidence, predicted == labels


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error: |accuracy - confidence| over 15 equal bins, weighted by their samples.

    Source: Guo et al., ICML 2017, Eq. 3.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities, classes = logits.double().softmax(1), logits.shape[1]
    return float(multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS, norm="l1"))


def detection_auroc(logits: Tensor, labels: Tensor) -> float | None:
    """Return how well confidence ranks right above wrong predictions; None when all are right or all are wrong.

    Source: Hendrycks and Gimpel, ICLR 2017.
    """
    from torchmetrics.functional.classification import binary_auroc

    confidence, right = _judged(logits, labels)
    return None if right.all() or not right.any() else float(binary_auroc(confidence, right.long()))


def risk_coverage_area(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over k = 1 .. N of the error rate among the k most confident predictions (AURC).

    Equal confidences count in their mean order. All right: 0; all wrong: 1. Source: Geifman et al., ICLR 2019.
    """
    confidence, right = _judged(logits, labels)
    _, tied, sizes = confidence.unique(return_inverse=True, return_counts=True)  # ascending
    wrong = torch.zeros_like(sizes, dtype=torch.float64).index_add_(0, tied, (~right).double())
    errors = (wrong / sizes).flip(0).repeat_interleave(sizes.flip(0)).cumsum(0)
    return float((errors / torch.arange(1, len(errors) + 1, device=errors.device)).mean())


def false_positive_rate(logits: Tensor, labels: Tensor) -> float | None:
    """Return the share of wrong predictions that a threshold accepts which accepts at least 95 % of the right ones.

    The threshold is the highest such confidence; None when all are right or all are wrong. Source: Liang et al.,
    ICLR 2018, with wrong predictions in the place of foreign samples.
    """
    confidence, right = _judged(logits, labels)
    if right.all() or not right.any():
        return None
    accepted = confidence[right].sort(descending=True).values
    threshold = accepted[-(-len(accepted) * ACCEPTED // 100) - 1]
    return float((confidence[~right] >= threshold).double().mean())


def reliability(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return the four measures under the names that records and tables give them."""
    return {
        "ece": calibration_error(logits, labels),
        "auroc": detection_auroc(logits, labels),
        "aurc": risk_coverage_area(logits, labels),
        "fpr95": false_positive_rate(logits, labels),
    }
