"""`equipoise bench`: what a step costs, against joint training and against a bare PyTorch loop.

Timings on shared machines drift, so subject and yardstick take turns within one process and the median of the ratios of
neighbouring turns is reported. On the CPU a turn is measured in the process's own CPU time, with one thread.

Each method is measured with each backbone: with `small` heads, optimiser and a method's own mathematics weigh as much
as the encoders, with `resnet18` the encoders are the cost, and a step may cost little more than its passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmark.bench_memory import peak_bytes
from benchmark.bench_table import StepCost
from benchmark.conformance_task import SOURCES
from benchmark.data import Part
from benchmark.errors import unknown_name
from benchmark.method import REFERENCE, Method, Plan
from benchmark.protocol import Optimizer, Protocol, validated
from benchmark.registry import BACKBONES, METHODS
from benchmark.task import Task
from benchmark.training import Fit, fit, initialised


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
    headroom: float | None = None
    """Largest accepted ratio of what a method's step costs to its declared passes."""
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

        # A test sample is evaluated a dozen times, with corrupted inputs too, and is no part of what is measured.
        return {"train": part(self.steps * self.batch_size), "val": part(4 * self.classes), "test": part(2)}


SMALL = Workload("small", {"upper": (1, 3, 8), "lower": (1, 5, 8)}, batch_size=64, steps=20, epochs=10, bare_limit=1.3)
# A batch as large as the papers' and not several small ones: what a step does once, whatever the batch (the optimiser,
# OGM-GE's noise over 22 million entries), would weigh four times as much as in their runs.
RESNET = Workload(
    "resnet18",
    {"audio": (1, 64, 48), "video": (3, 64, 64)},
    batch_size=64,
    steps=1,
    epochs=1,
    bare_limit=1.05,
    headroom=1.1,
)
WORKLOADS = {work.backbone: work for work in (SMALL, RESNET)}
BARE = "bare loop"
ADVERSARIAL = "base"
"""Yardstick of the methods that need several domains."""
ROUNDS = 7


def clock() -> float:
    """Return seconds: CPU time of this process, which other people's load hardly moves; with CUDA, time on the wall."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


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


def _method(name: str, task: Task) -> Method:
    kind = METHODS.load(name)
    return kind(validated(kind.Options, kind.sample_options(task), f"Options of method {name!r}"), task)


class Bench:
    """The measurements with one backbone; the yardsticks' own are made once."""

    def __init__(self, work: Workload, rounds: int = ROUNDS) -> None:
        self.work = work
        self.rounds = rounds
        self.parts = work.parts()
        self._bare_peak: int | None = None
        self._yardsticks: dict[str, StepCost] = {}

    def cost(self, name: str) -> StepCost:
        """Measure a method against joint training, or one that needs several domains against adversarial training."""
        yardstick = ADVERSARIAL if METHODS.load(name).info.min_domains > 0 else REFERENCE
        if yardstick not in self._yardsticks:
            self._yardsticks[yardstick] = self._against_bare(yardstick)
        base = self._yardsticks[yardstick]
        return base if name == yardstick else self._against(name, base)

    def _against_bare(self, name: str) -> StepCost:
        """Measure a yardstick against joint training in a bare loop."""
        if self._bare_peak is None:
            self._bare_peak = peak_bytes(self._bare)
        limit = self.work.bare_limit if name == REFERENCE else None
        return self._measured(name, BARE, self._bare, self._bare_peak, limit)

    def _against(self, name: str, base: StepCost) -> StepCost:
        """Measure a method against its yardstick; its ratio to the bare loop is that of both."""
        headroom = self.work.headroom
        limit = None if headroom is None else headroom * self._declared(name)
        cost = self._measured(name, base.method, lambda: self._train(base.method), base.peak_bytes, limit)
        return cost.relative_to(base)

    def _measured(
        self, name: str, yardstick: str, other: Callable[[], float], other_peak: int, limit: float | None
    ) -> StepCost:
        runs: list[Fit] = []
        peak = peak_bytes(lambda: runs.append(self._fit(name)))
        seconds: list[float] = []

        def subject() -> float:
            seconds.append(self._train(name))
            return seconds[-1]

        rounds, measured = self.rounds, ratio(subject, other, self.rounds)
        if limit is not None and measured > limit:
            # A busy machine disturbs a short measurement; a longer one decides.
            rounds = 3 * rounds
            measured = ratio(subject, other, rounds)
        method = self._built(name)
        return StepCost(
            backbone=self.work.backbone,
            method=name,
            yardstick=yardstick,
            ratio=measured,
            to_bare=measured,
            limit=limit,
            declared=self._declared(name),
            forward=runs[0].passes.forward,
            backward=runs[0].passes.backward,
            peak_bytes=peak,
            peak_ratio=peak / other_peak,
            parameters=sum(value.numel() for value in method.parameters(initialised(method, 0)).values()),
            milliseconds=1000 * statistics.median(seconds) / (self.work.steps * self.work.epochs),
            rounds=rounds,
        )

    def _built(self, name: str) -> Method:
        several = name == ADVERSARIAL or METHODS.load(name).info.min_domains > 0
        return _method(name, self.work.task(SOURCES if several else ()))

    def _declared(self, name: str) -> float:
        """Return what the declared passes predict for a step's ratio to joint training's."""
        work, method = self.work, self._built(name)
        train, val = len(self.parts["train"]), len(self.parts["val"])
        return method.expected_passes(Plan(work.epochs, train, val, method.task.modalities, work.batch_size)).relative

    def _fit(self, name: str) -> Fit:
        return fit(self._built(name), self.parts, self.work.protocol(), 0, clock=clock)

    def _train(self, name: str) -> float:
        return self._fit(name).training_seconds

    def _bare(self) -> float:
        """Joint training as anybody would write it, on the same model, data and optimiser."""
        work = self.work
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = initialised(_method(REFERENCE, work.task()), 0).to(device).train()
        settings = work.protocol().optimizer
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
        train = self.parts["train"].to(torch.device(device))
        order = torch.Generator().manual_seed(0)
        started = clock()
        for _ in range(work.epochs):
            for batch in train.batches(work.batch_size, order=order):
                loss = functional.cross_entropy(model.classify(model.encode(batch.inputs)), batch.labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return clock() - started


def costs(methods: Sequence[str] = (), backbones: Sequence[str] = (), rounds: int = ROUNDS) -> Iterator[StepCost]:
    """Yield the step costs of the named methods, or of all, with the named backbones, or with both; joint's first.

    Raises UsageError for a name that is not known.
    """
    for name in methods:
        METHODS.entry(name)
    for name in backbones:
        if name not in WORKLOADS:
            raise unknown_name("backbone with a workload", name, WORKLOADS)
    named = [name for name in METHODS.names() if not methods or name in methods]
    for backbone, work in WORKLOADS.items():
        if not backbones or backbone in backbones:
            bench = Bench(work, rounds)
            for name in dict.fromkeys((REFERENCE, *named)):
                yield bench.cost(name)


def run(methods: Sequence[str] = (), backbones: Sequence[str] = (), rounds: int = ROUNDS) -> int:
    """Print each step cost and bring the device's table up to date; return 1 if one is over its limit, else 0."""
    import click

    from benchmark.bench_table import BenchTable

    torch.set_num_threads(1)
    over = False
    table = BenchTable.here()
    for cost in costs(methods, backbones, rounds):
        click.echo(str(cost))
        # After each: what an interrupted run has measured is kept.
        table.add(cost)
        over = over or cost.over
    click.echo(table.path)
    return int(over)
