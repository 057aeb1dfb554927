"""The cores and GPUs of this machine, and how many workers they hold."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

MEBIBYTES_PER_WORKER = 4096
"""GPU memory that a worker is expected to use: CUDA itself, the prepared arrays, a ResNet-18 on small inputs."""

_ASK = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """A GPU as `CUDA_VISIBLE_DEVICES` names it, with its memory, 0 where that is not known."""

    name: str
    mebibytes: int


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[Gpu]:
    """Return the GPUs that this process may use."""
    listing = ""
    if shutil.which(_ASK[0]):
        listing = subprocess.run(_ASK, check=False, capture_output=True, text=True).stdout
    return selected(listing, os.environ.get("CUDA_VISIBLE_DEVICES"))


def selected(listing: str, visible: str | None) -> list[Gpu]:
    """Return those GPUs of a listing (index, identifier, MiB per line) that `CUDA_VISIBLE_DEVICES` leaves.

    Without that variable they are named by identifier: CUDA may count them in another order.
    """
    lines = [[field.strip() for field in line.split(",")] for line in listing.splitlines()]
    known = [(line[0], line[1], int(line[2]) if line[2].isdecimal() else 0) for line in lines if len(line) == 3]
    if visible is None:
        return [Gpu(name, memory) for _, name, memory in known]
    memories = {key: memory for index, name, memory in known for key in (index, name)}
    names = [name.strip() for name in visible.split(",")]
    # CUDA ignores what follows the first name that is none.
    end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    return [Gpu(name, memories.get(name, 0)) for name in names[:end]]


def default_jobs(cores: int, gpus: Sequence[Gpu]) -> int:
    """Return how many workers to start: one per core, and on GPUs no more than their memory holds, one each at least.

    A worker keeps a core busy with launching kernels, so that more workers than cores slow each other down.
    """
    if not gpus:
        return cores
    return sum(max(1, min(cores // len(gpus), gpu.mebibytes // MEBIBYTES_PER_WORKER)) for gpu in gpus)
