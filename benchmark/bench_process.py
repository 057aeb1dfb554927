"""`python -m benchmark.bench_process`: what `process.prepare` saves a cell, evaluations included.

Two processes take turns with the same joint training, one prepared as every worker is, the other as PyTorch leaves it
with deterministic kernels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import torch

from benchmark import process
from benchmark.bench import RESNET, SMALL, Workload, clock, ratio
from benchmark.data import Part
from benchmark.method import REFERENCE
from benchmark.registry import METHODS
from benchmark.training import fit

SPECTROGRAMS = Workload(
    "small", {"audio": (1, 129, 64), "image": (1, 8, 8)}, batch_size=64, steps=20, epochs=2, bare_limit=1.3
)
"""The small backbone on maps so large that a batch's activations fill megabytes."""
WORKLOADS = {"strips": SMALL, "spectrograms": SPECTROGRAMS, "images": RESNET}


def plain() -> None:
    """Choose deterministic kernels and nothing else."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)


def prepared() -> None:
    """Prepare the process as `run_cell` does."""
    torch.set_num_threads(1)
    process.prepare()


@cache
def _parts(name: str) -> dict[str, Part]:
    # As in a worker, which reads a dataset once.
    return WORKLOADS[name].parts()


def train(name: str) -> float:
    """Train one seed of a workload and return the seconds it took."""
    work = WORKLOADS[name]
    kind = METHODS.load(REFERENCE)
    method, parts = kind(kind.Options(), work.task()), _parts(name)
    started = clock()
    fit(method, parts, work.protocol(), 0)
    return clock() - started


def worker(initializer: Callable[[], None]) -> ProcessPoolExecutor:
    """Return one fresh process that has run `initializer`."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=initializer)


def run(rounds: int = 7) -> int:
    """Print how many times as fast a prepared process trains each workload."""
    import click

    with worker(plain) as one, worker(prepared) as other:
        for name, work in WORKLOADS.items():
            gain = ratio(
                lambda name=name: one.submit(train, name).result(),  # type: ignore[misc]  # called in this turn
                lambda name=name: other.submit(train, name).result(),  # type: ignore[misc]
                rounds,
            )
            click.echo(f"{work.backbone:10} {name:14} {gain:5.2f}x as fast as in a process as it comes")
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
