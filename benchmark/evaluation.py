"""Metrics on predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from benchmark.data import Part
    from benchmark.method import Method
    from benchmark.model import MultimodalModel


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows of `(N, C)` logits whose largest entry is the label `(N,)`."""
    return (logits.argmax(1) == labels).double().mean().item()


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the F1 score averaged over the classes that occur in labels or predictions."""
    from torchmetrics.functional.classification import multiclass_f1_score

    return float(multiclass_f1_score(logits, labels, num_classes=logits.shape[1], average="macro", validate_args=False))


@torch.no_grad()
def evaluate(method: Method, model: MultimodalModel, part: Part, batch_size: int) -> dict[str, Any]:
    """Return accuracy, macro F1, mean cross-entropy (nats), and accuracies with one modality alone or one missing."""
    training = model.training
    model.eval()
    predictions = [method.predict(model, batch) for batch in part.batches(batch_size)]
    model.train(training)
    logits = torch.cat([prediction.logits for prediction in predictions]).float()
    return {
        "accuracy": accuracy(logits, part.labels),
        "macro_f1": macro_f1(logits, part.labels),
        "loss": functional.cross_entropy(logits, part.labels).item(),
        "unimodal": _accuracies([prediction.unimodal for prediction in predictions], part.labels),
        "missing": _accuracies([prediction.missing for prediction in predictions], part.labels),
    }


def _accuracies(batches: Sequence[Mapping[str, Tensor]], labels: Tensor) -> dict[str, float]:
    """Return the accuracy of each named set of logits, which come batch by batch."""
    return {name: accuracy(torch.cat([logits[name] for logits in batches]), labels) for name in batches[0]}
