"""Metrics on predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from benchmark.model import evaluating
from benchmark.reliability import reliability

if TYPE_CHECKING:
    from benchmark.data import Batch, Part
    from benchmark.method import Method
    from benchmark.model import MultimodalModel, Prediction

WIDER = 4
"""Batches that are evaluated at once: without gradients they fit where one fits with them."""


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows of `(N, C)` logits whose largest entry is the label `(N,)`."""
    return (logits.argmax(1) == labels).double().mean().item()


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the F1 score averaged over the classes that occur in labels or predictions."""
    from torchmetrics.functional.classification import multiclass_f1_score

    return float(multiclass_f1_score(logits, labels, num_classes=logits.shape[1], average="macro", validate_args=False))


@torch.no_grad()
def _predictions(method: Method, model: MultimodalModel, batches: Iterable[Batch]) -> list[Prediction]:
    """Return the method's answers to the batches, in evaluation mode."""
    with evaluating(model):
        return [method.predict(model, batch) for batch in batches]


def _logits(predictions: Sequence[Prediction]) -> Tensor:
    return torch.cat([prediction.logits for prediction in predictions]).float()


def evaluate(method: Method, model: MultimodalModel, part: Part, batch_size: int) -> dict[str, Any]:
    """Return accuracy, macro F1, mean cross-entropy (nats), and accuracies with one modality alone or one missing."""
    predictions = _predictions(method, model, part.batches(batch_size))
    logits = _logits(predictions)
    return {
        "accuracy": accuracy(logits, part.labels),
        "macro_f1": macro_f1(logits, part.labels),
        "loss": functional.cross_entropy(logits, part.labels).item(),
        "unimodal": _accuracies([prediction.unimodal for prediction in predictions], part.labels),
        "missing": _accuracies([prediction.missing for prediction in predictions], part.labels),
    }


def evaluate_finally(method: Method, model: MultimodalModel, part: Part, batch_size: int) -> dict[str, Any]:
    """Return accuracy, reliability, and as `corrupted` the accuracies by modality, corruption and severity 1 to 3."""
    logits = _logits(_predictions(method, model, part.batches(batch_size)))

    def under(modality: str, corruption: str, severity: int) -> float:
        batches = corrupted(part, modality, corruption, severity, WIDER * batch_size)
        return accuracy(_logits(_predictions(method, model, batches)), part.labels)

    return {
        "accuracy": accuracy(logits, part.labels),
        **reliability(logits.cpu(), part.labels.cpu()),  # a cumulative sum is not deterministic on every device
        "corrupted": {
            modality: {name: [under(modality, name, severity) for severity in SEVERITIES] for name in CORRUPTIONS}
            for modality in method.task.modalities
        },
    }


def _accuracies(batches: Sequence[Mapping[str, Tensor]], labels: Tensor) -> dict[str, float]:
    """Return the accuracy of each named set of logits, which come batch by batch."""
    return {name: accuracy(torch.cat([logits[name] for logits in batches]), labels) for name in batches[0]}
