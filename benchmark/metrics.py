"""The numbers that a table can show of a run, by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from benchmark.errors import unknown_name

LABELS = {
    "accuracy": "accuracy (%)",
    "val_accuracy": "validation accuracy (%)",
    "macro_f1": "macro F1 (%)",
    "balance_factor": "balance factor",
    "ece": "calibration error (%)",
    "auroc": "AUROC of errors (%)",
    "aurc": "AURC (%)",
    "fpr95": "FPR at 95 % TPR (%)",
    "missing": "accuracy, a modality missing (%)",
    "corrupted": "accuracy, a modality corrupted (%)",
}
BY_MODALITY = ("accuracy", "val_accuracy")
"""Metrics that exist of one modality's own prediction as well: `accuracy:audio`."""
LOWER_IS_BETTER = frozenset({"ece", "aurc", "fpr95"})
UNDEFINED_WITHOUT_ERRORS = frozenset({"auroc", "fpr95"})


def parts_of(metric: str) -> tuple[str, str | None]:
    """Return a metric's name and the modality whose own prediction it judges, None for the model's."""
    name, _, modality = metric.partition(":")
    return name, modality or None


def label(metric: str) -> str:
    """Return what a metric is called in tables, with its unit."""
    name, modality = parts_of(metric)
    return LABELS[name] if modality is None else f"{modality} alone, {LABELS[name]}"


def _known(metric: str) -> str:
    """Return the metric; raises ValueError for one that does not exist, as validation wants it."""
    name, modality = parts_of(metric)
    if name not in LABELS:
        raise ValueError(str(unknown_name("metric", name, LABELS)))
    if ":" in metric and (name not in BY_MODALITY or modality is None):
        raise ValueError(
            f"{metric!r} is no metric of one modality: those are {', '.join(f'{n}:NAME' for n in BY_MODALITY)}"
        )
    return metric


Metric = Annotated[str, AfterValidator(_known)]
