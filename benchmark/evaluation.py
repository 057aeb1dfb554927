"""Metrics on predictions."""

from __future__ import annotations

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
    """Return accuracy, macro F1, mean cross-entropy (nats) and unimodal accuracies on one part of a split."""
    training = model.training
    model.eval()
    predictions = [method.predict(model, batch) for batch in part.batches(batch_size)]
    model.train(training)
    logits = torch.cat([prediction.logits for prediction in predictions]).float()
    unimodal = {name: torch.cat([p.unimodal[name] for p in predictions]) for name in predictions[0].unimodal}
    return {
        "accuracy": accuracy(logits, part.labels),
        "macro_f1": macro_f1(logits, part.labels),
        "loss": functional.cross_entropy(logits, part.labels).item(),
        "unimodal": {name: accuracy(value, part.labels) for name, value in unimodal.items()},
    }
