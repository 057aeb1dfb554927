"""`equipoise bench`: what a step costs, against joint training and against a bare PyTorch loop.

Timings on shared machines drift, so subject and yardstick take turns within one process and the median of the ratios of
neighbouring turns is reported. On the CPU a turn is measured in the process's own CPU time, with one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmark.conformance_task import SOURCES
from benchmark.data import Part
from benchmark.method import REFERENCE, Method, Plan
from benchmark.protocol import Optimizer, Protocol, validated
from benchmark.registry import BACKBONES, METHODS
from benchmark.task import Task
from benchmark.training import fit, initialised


@dataclass(frozen=True)
class Workload:
    """Synthetic two-modality data for one backbone; values do not matter to the clock."""

    backbone: str
    shapes: Mapping[str, tuple[int, ...]]
    batch_size: int
    steps: int
    epochs: int
    bare_limit: float
    """Largest accepted ratio per step of joint training to a bare loop."""
    classes: int = 10

    def task(self, domains: Sequence[str] = ()) -> Task:
        """Return the task with this backbone, of several domains where they are named."""
        backbone = BACKBONES.load(self.backbone)
        return Task(
            dict(self.shapes),
            self.classes,
            self.epochs,
            lambda _modality, shape: backbone(shape),
            domains=tuple(domains),
        )

    def protocol(self) -> Protocol:
        """Return a recipe whose learning rate never diverges."""
        return Protocol(epochs=self.epochs, batch_size=self.batch_size, optimizer=Optimizer(lr=1e-4))

    def parts(self) -> dict[str, Part]:
        """Return training, validation and test parts; their domains count where the task has some."""
        generator = torch.Generator().manual_seed(0)

        def part(size: int) -> Part:
            inputs = {name: torch.randn(size, *shape, generator=generator) for name, shape in self.shapes.items()}
            labels = torch.randint(self.classes, (size,), generator=generator)
            return Part.from_tensors(inputs, labels, torch.arange(size) % len(SOURCES))

        return {
            "train": part(self.steps * self.batch_size),
            "val": part(4 * self.classes),
            "test": part(self.batch_size),
        }


SMALL = Workload("small", {"upper": (1, 3, 8), "lower": (1, 5, 8)}, batch_size=64, steps=20, epochs=10, bare_limit=1.3)
RESNET = Workload(
    "resnet18", {"audio": (1, 64, 48), "video": (3, 64, 64)}, batch_size=16, steps=3, epochs=1, bare_limit=1.05
)
HEADROOM = 1.08
"""Largest accepted ratio of what a proposed method's step costs to its passes, where the encoders are the cost."""
BARE = "bare loop"
ADVERSARIAL = "base"
"""Yardstick of the methods that need several domains."""


@dataclass(frozen=True)
class Timing:
    """A median ratio of seconds; `limit` is the largest accepted one, `passes` what the counted passes predict."""

    subject: str
    yardstick: str
    backbone: str
    ratio: float
    limit: float | None = None
    passes: float | None = None

    @property
    def over(self) -> bool:
        """True when the ratio exceeds its limit."""
        return self.limit is not None and self.ratio > self.limit

    def __str__(self) -> str:
        text = f"{self.subject:24} {self.ratio:5.2f}x {self.yardstick} ({self.backbone})"
        if self.passes is not None:
            text += f", declared passes {self.passes:.2f}x"
        return text if self.limit is None else f"{text}, limit {self.limit:.2f}x"


def clock() -> float:
    """Return seconds: CPU time of this process, which other people's load hardly moves; with CUDA, time on the wall."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _method(name: str, task: Task) -> Method:
    kind = METHODS.load(name)
    return kind(validated(kind.Options, kind.sample_options(task), f"Options of method {name!r}"), task)


def _train(method: Method, work: Workload, parts: dict[str, Part]) -> float:
    return fit(method, parts, work.protocol(), 0, clock=clock).training_seconds


def _bare(work: Workload, parts: dict[str, Part]) -> float:
    """Joint training as anybody would write it, on the same model, data and optimiser."""
    model = initialised(_method(REFERENCE, work.task()), 0).train()
    settings = work.protocol().optimizer
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=True
    )
    order = torch.Generator().manual_seed(0)
    started = clock()
    for _ in range(work.epochs):
        for batch in parts["train"].batches(work.batch_size, order=order):
            loss = functional.cross_entropy(model.classify(model.encode(batch.inputs)), batch.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return clock() - started


def ratio(subject: Callable[[], float], yardstick: Callable[[], float], rounds: int) -> float:
    """Return the median over `rounds` of subject seconds / yardstick seconds, after one unmeasured turn of each."""
    subject(), yardstick()
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            below = yardstick()
            above = subject()
        else:
            above = subject()
            below = yardstick()
        ratios.append(above / below)
    return statistics.median(ratios)


def against_bare(work: Workload, rounds: int) -> Timing:
    """Time joint training in our loop against a bare loop."""
    parts = work.parts()
    measured = ratio(lambda: _train(_method(REFERENCE, work.task()), work, parts), lambda: _bare(work, parts), rounds)
    return Timing(REFERENCE, BARE, work.backbone, measured, work.bare_limit)


def against_reference(name: str, work: Workload, rounds: int, *, limited: bool = False) -> Timing:
    """Time a method against joint training, or one that needs several domains against adversarial training."""
    several = METHODS.load(name).info.min_domains > 0
    yardstick, task = (ADVERSARIAL, work.task(SOURCES)) if several else (REFERENCE, work.task())
    parts = work.parts()
    plan = Plan(work.epochs, len(parts["train"]), len(parts["val"]), task.modalities, work.batch_size)
    passes = _method(name, task).expected_passes(plan).relative
    measured = ratio(
        lambda: _train(_method(name, task), work, parts),
        lambda: _train(_method(yardstick, task), work, parts),
        rounds,
    )
    return Timing(name, yardstick, work.backbone, measured, HEADROOM * passes if limited else None, passes)


def limited(rounds: int = 7) -> Iterator[Timing]:
    """Yield the comparisons that have a limit: the loop, and the proposed methods where the encoders are the cost."""
    for work in (SMALL, RESNET):
        yield against_bare(work, rounds)
    for name in METHODS.names():
        if METHODS.entry(name).kind == "proposed":
            yield against_reference(name, RESNET, rounds, limited=True)


def timings(rounds: int = 7) -> Iterator[Timing]:
    """Yield the limited comparisons, then every method against joint training with the small backbone."""
    yield from limited(rounds)
    for name in METHODS.names():
        if name != REFERENCE:
            yield against_reference(name, SMALL, rounds)


def run() -> int:
    """Print all timings; return 1 if one is over its limit, else 0."""
    import click

    torch.set_num_threads(1)
    over = False
    for timing in timings():
        click.echo(str(timing))
        over = over or timing.over
    return int(over)
