"""`equipoise check DATASET`: is the prepared form complete, finite, normalised and the same every time?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmark import seeding
from benchmark.conformance import Record
from benchmark.conformance_trial import Outcome
from benchmark.data import Batch, Part, TaskData, load
from benchmark.errors import DataError
from benchmark.registry import DATASETS

BATCH = 64
TOLERANCE = 0.05
"""How far the mean of normalised training data may be from 0, and the standard deviation from 1."""


def _batches(part: Part, seed: int) -> Iterator[Batch]:
    generators = (seeding.generator(seed, axis) for axis in ("order", "augmentation"))
    return part.batches(BATCH, order=next(generators), augment=next(generators))


def every_class_in_every_part(data: TaskData) -> str:
    """No part lacks a class."""
    for name, part in data.parts.items():
        found = set(part.labels.unique().tolist())
        absent = [label for number, label in enumerate(data.classes) if number not in found]
        if absent:
            return f"part {name} has no sample of class {', '.join(absent)}"
    return ""


def finite_batches(data: TaskData) -> str:
    """Batches of every part are finite float32 of the stated shape."""
    for name, part in data.parts.items():
        for batch in part.batches(BATCH):
            for modality, values in batch.inputs.items():
                shape, stated = tuple(values.shape[1:]), data.shapes[modality]
                if shape != stated or values.dtype != torch.float32:
                    return f"{name}/{modality}: {values.dtype} {shape}, stated {stated}"
                if not torch.isfinite(values).all():
                    return f"{name}/{modality} has values that are not finite"
    return ""


def normalised(data: TaskData) -> str:
    """Un-augmented training data have mean 0, unless their zero is fixed, and standard deviation 1 per modality."""
    batches = list(data.parts["train"].batches(BATCH))
    for modality in data.modalities:
        values = torch.cat([batch.inputs[modality].flatten() for batch in batches])
        mean = 0.0 if modality in data.zeros else values.mean().item()
        deviation = (values - mean).square().mean().sqrt().item()
        if abs(mean) > TOLERANCE or abs(deviation - 1) > TOLERANCE:
            return f"{modality}: mean {mean:.3f}, standard deviation {deviation:.3f}"
    return ""


def same_every_time(data: TaskData) -> str:
    """One seed gives the same batches twice, another seed gives another order."""
    train = data.parts["train"]
    for first, second in zip(_batches(train, 0), _batches(train, 0), strict=True):
        if not all(torch.equal(first.inputs[name], second.inputs[name]) for name in first.inputs):
            return "two passes of one seed differ"
    if torch.equal(next(_batches(train, 0)).index, next(_batches(train, 1)).index):
        return "two seeds give the same order"
    return ""


CHECKS: dict[str, Callable[[TaskData], str]] = {
    "classes": every_class_in_every_part,
    "finite": finite_batches,
    "normalised": normalised,
    "deterministic": same_every_time,
}


def check_dataset(name: str) -> Iterator[Record]:
    """Yield the record of every check of every named split; a dataset that is not here is refused with the reason."""
    for split in DATASETS.load(name).card.splits:
        try:
            data = load(name, split)
        except DataError as error:
            yield Record(name, f"opens {split}", Outcome.REFUSED, str(error))
            continue
        yield Record(name, f"opens {split}", Outcome.PASSED)
        for check, function in CHECKS.items():
            problem = function(data)
            yield Record(name, f"{check} {split}", Outcome.FAILED if problem else Outcome.PASSED, problem)
