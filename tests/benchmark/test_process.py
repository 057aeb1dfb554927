"""How a process trains: nothing hangs on what fresh memory holds, and freed memory is kept."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmark import process
from benchmark.conformance_task import SOURCES, Widths, check_parts, check_protocol, check_task
from benchmark.memory import keep_freed_memory
from benchmark.protocol import validated
from benchmark.registry import METHODS
from benchmark.training import Fit, fit

MEBIBYTE = 1 << 20


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    process.make_deterministic()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def trained(name: str) -> Fit:
    kind = METHODS.load(name)
    task = replace(check_task(2, Widths.EQUAL), domains=SOURCES if kind.info.min_domains else ())
    method = kind(validated(kind.Options, kind.sample_options(task), name), task)
    return fit(method, check_parts(2), check_protocol(), 0)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", METHODS.names())
def test_no_method_reads_memory_that_nobody_has_written(name: str) -> None:
    plain = trained(name)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    filled = trained(name)
    assert plain.epochs == filled.epochs
    assert plain.final == filled.final


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the C library of GNU is told")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    keep_freed_memory()

    def step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        maps = [torch.zeros(16 * MEBIBYTE, dtype=torch.uint8) for _ in range(5)]
        del maps
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    step()
    pages = 5 * 16 * MEBIBYTE // resource.getpagesize()
    assert step() < pages / 10
