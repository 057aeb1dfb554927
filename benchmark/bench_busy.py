"""How busy input keeps a GPU: the part of an epoch of ResNet-18 in which it has a batch to train on.

An epoch from the prepared arrays, read and augmented as in training, takes turns with one on the same number of batches
that are ready on the device. What the first takes longer is what the device waits, and what it spends on augmenting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Generator
from torch.nn import functional

from benchmark import process
from benchmark.bench import clock, ratio
from benchmark.data import Batch, Part, load
from benchmark.method import REFERENCE
from benchmark.model import MultimodalModel
from benchmark.protocol import Cell, Optimizer, Protocol
from benchmark.run import build_method, device_name
from benchmark.training import cpu_or_cuda, initialised

FLOOR = 0.9
"""Smallest accepted share."""
BATCH = 64
CLIPS = 1024
"""How many samples of the training part an epoch has at most: as batches that are ready they lie on the device."""


@dataclass(frozen=True)
class Busy:
    """Seconds of an epoch on batches that are ready / seconds of one with input."""

    device: str
    samples: int
    share: float

    @property
    def under(self) -> bool:
        """True when the share is less than what is accepted."""
        return self.share < FLOOR

    def __str__(self) -> str:
        return (
            f"{self.device} trains ResNet-18 in {self.share:.0%} of an epoch of {self.samples} samples in batches of "
            f"{BATCH}, at least {FLOOR:.0%}"
        )


def busy(dataset: str, rounds: int) -> Busy:
    """Return how busy the device is with joint training on a prepared dataset's default split."""
    process.prepare()
    fabric = cpu_or_cuda("32-true")
    part = load(dataset, device=fabric.device).parts["train"]
    part = part.subset(torch.arange(min(len(part), CLIPS)))
    recipe = Protocol(epochs=1, batch_size=BATCH, optimizer=Optimizer(name="sgd", lr=0.001))
    method = build_method(
        Cell(dataset=dataset, backbone="resnet18", fusion="concat", method=REFERENCE, protocol=recipe, seed=0)
    )
    return Busy(device_name(fabric), len(part), share(initialised(method, 0).to(fabric.device), part, rounds))


def share(model: MultimodalModel, part: Part, rounds: int) -> float:
    """Return the median over `rounds` of an epoch's seconds on batches that are ready / seconds from the part."""
    generator = Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.001, momentum=0.9, foreach=True)

    def batches() -> Iterable[Batch]:
        return part.batches(BATCH, order=generator, augment=generator)

    def train(batches: Iterable[Batch]) -> float:
        started = clock()
        for batch in batches:
            functional.cross_entropy(model.classify(model.encode(batch.inputs)), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return clock() - started

    ready = list(batches())
    return 1 / ratio(lambda: train(batches()), lambda: train(ready), rounds)
