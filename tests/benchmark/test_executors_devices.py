from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from benchmark.executors import Failure, local
from benchmark.executors.devices import Gpu, cores, default_jobs, gpus, selected

LISTING = "0, GPU-aa, 81559\n1, GPU-bb, 24564\n"


def test_gpus_are_named_by_identifier_as_cuda_counts_them_in_another_order() -> None:
    assert selected(LISTING, None) == [Gpu("GPU-aa", 81559), Gpu("GPU-bb", 24564)]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", [Gpu("1", 24564)]),
        ("1, 0", [Gpu("1", 24564), Gpu("0", 81559)]),
        ("GPU-bb", [Gpu("GPU-bb", 24564)]),
        ("MIG-cc", [Gpu("MIG-cc", 0)]),
        ("0,-1,1", [Gpu("0", 81559)]),
        ("", []),
        ("-1", []),
    ],
)
def test_only_the_gpus_that_are_visible_are_used(visible: str, found: list[Gpu]) -> None:
    assert selected(LISTING, visible) == found


def test_a_gpu_that_does_not_say_its_memory_counts() -> None:
    assert selected("0, GPU-aa, [N/A]\n", None) == [Gpu("GPU-aa", 0)]


def test_a_machine_without_gpus_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == []


def test_there_is_a_worker_per_core_without_gpus() -> None:
    assert default_jobs(6, []) == 6
    assert cores() >= 1


@pytest.mark.parametrize(
    ("cores", "memories", "jobs"),
    [
        (16, [81559], 16),  # cores are what is short
        (16, [24564], 5),  # memory is
        (16, [24564, 81559], 5 + 8),
        (2, [81559] * 4, 4),
        (16, [0], 1),  # not known
    ],
)
def test_gpus_have_as_many_workers_as_cores_and_memory_hold_and_one_at_least(
    cores: int, memories: list[int], jobs: int
) -> None:
    assert default_jobs(cores, [Gpu(str(number), memory) for number, memory in enumerate(memories)]) == jobs


def gpu_of_this_worker(_task: int) -> str:
    return f"{os.environ['CUDA_VISIBLE_DEVICES']} of {os.getpid()}"


def crowd(folder: Path, number: int) -> int:
    with (folder / "tries").open("a") as stream:
        stream.write(f"{number}:{os.getpid()}\n")
    if number == 0 and not (folder / "crowded").exists():
        (folder / "crowded").touch()
        raise MemoryError("no memory left")
    return number


def never_enough(_task: int) -> None:
    raise MemoryError("no memory left")


def break_worker(number: int) -> int:
    if number == 0:
        sys.modules["broken"] = sys
        raise RuntimeError("device-side assert")
    if "broken" in sys.modules:
        raise RuntimeError("device-side assert, still")
    return number


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    found = {str(outcome.result) for outcome in local.run(gpu_of_this_worker, list(range(3)), jobs=3)}
    assert sorted(text.split()[0] for text in found) == ["3", "3", "5"]


def test_a_task_without_memory_is_tried_again_beside_fewer_workers(tmp_path: Path) -> None:
    outcomes = list(local.run(partial(crowd, tmp_path), list(range(5)), jobs=2))
    assert {outcome.task: outcome.result for outcome in outcomes} == {number: number for number in range(5)}
    tries = [line.split(":") for line in (tmp_path / "tries").read_text().split()]
    assert [number for number, _ in tries].count("0") == 2


def test_a_task_that_never_finds_memory_fails_with_what_it_raised() -> None:
    [outcome] = local.run(never_enough, [1], jobs=1)
    assert isinstance(outcome.result, Failure)
    assert outcome.result.kind == "MemoryError"


def test_an_exception_that_breaks_its_process_fails_no_other_task() -> None:
    outcomes = {outcome.task: outcome.result for outcome in local.run(break_worker, [0, 1, 2], jobs=1)}
    assert isinstance(outcomes.pop(0), Failure)
    assert outcomes == {1: 1, 2: 2}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux shows what a process maps")
def test_prepared_arrays_on_a_cpu_are_the_file_itself_which_workers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.data import load  # not above: the workers of the other tests need no torch

    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    for values in load("digits").parts["train"].inputs.values():
        [line] = [line for line in _mapped() if line[0] <= values.data_ptr() < line[1]]
        assert line[2].startswith(str(tmp_path))
        assert line[2].endswith(".npy")


def _mapped() -> list[tuple[int, int, str]]:
    """Return first and last address and the file of what this process maps."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [(line[0].split("-"), line[5] if len(line) == 6 else "") for line in lines]
    return [(int(first, 16), int(last, 16), file) for (first, last), file in ranges]
