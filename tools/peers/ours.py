"""`python -m tools.peers.ours BATCH HOME...`: our side, prepared in a turn per data home, and then trained in the last.

Every home holds clips that `clips` chose. Preparing few and then all of them says what a clip costs without the start
of the processes that decode.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Generator, Tensor

from benchmark import process
from benchmark.data import Batch, Part, load
from benchmark.paths import raw_home
from benchmark.preparation import prepare
from benchmark.protocol import Cell, Optimizer, Protocol
from benchmark.run import build_method
from benchmark.training import cpu_or_cuda, fit
from datasets.cremad import CREMAD
from tools.peers.adapters import ALPHA, DECAY, MOMENTUM, RATE
from tools.peers.clips import card_of
from tools.peers.launch import versions
from tools.peers.turns import Turns, Watch, clock


@dataclass(frozen=True)
class WatchedPart(Part):
    """A part that says how long its batches are waited for."""

    watch: Watch = field(default_factory=Watch)

    def batches(
        self,
        batch_size: int,
        *,
        order: Generator | None = None,
        indices: Tensor | None = None,
        augment: Generator | None = None,
    ) -> Iterator[Batch]:
        """Yield the batches of the part."""
        return self.watch.timed(super().batches(batch_size, order=order, indices=indices, augment=augment), len)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in used)


def cell(batch: int) -> Cell:
    """Return an epoch of OGM-GE with the recipe of all."""
    optimizer = Optimizer(name="sgd", lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    return Cell(
        dataset="cremad",
        backbone="resnet18",
        fusion="concat",
        method="ogm_ge",
        options={"alpha": ALPHA},
        protocol=Protocol(epochs=1, batch_size=batch, optimizer=optimizer),
        seed=0,
    )


def main(batch: int, *homes: str) -> None:
    """Prepare each home when asked to, and then train an epoch whenever asked to."""
    turns, watch = Turns(), Watch()
    torch.set_num_threads(1)
    process.prepare()  # as every cell is run
    card = CREMAD.card
    turns.tell(**versions("numpy", "av"))
    for home in homes:
        os.environ["EQUIPOISE_DATA"] = home
        CREMAD.card = card_of(card, raw_home("cremad"))
        turns.wait()
        before = cpu_seconds()
        prepare("cremad", jobs=1)
        turns.tell(prepared=cpu_seconds() - before)
    work = cell(batch)
    fabric = cpu_or_cuda(work.protocol.precision)
    parts = dict(load("cremad", device=fabric.device).parts)
    given: dict[str, Any] = {own.name: getattr(parts["train"], own.name) for own in fields(Part)}
    parts["train"] = WatchedPart(**given, watch=watch)
    while True:
        method = build_method(work)
        turns.wait()
        trained, answer = watch.epoch(lambda: fit(method, parts, work.protocol, 0, fabric=fabric, clock=clock))  # noqa: B023
        # Neither building the model nor evaluating it is part of an epoch.
        turns.tell(**{**answer, "epoch": trained.training_seconds})


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
