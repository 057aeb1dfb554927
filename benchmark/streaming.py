"""Arrays that do not fit on the device: their rows are read from the file in the background, some batches ahead."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.errors import DataError

RESERVE = 0.5
"""Share of the device's free memory that arrays leave to the model, its gradients and what a step computes."""

THREADS = 4
AHEAD = 4
"""Batches that are read, or wait on the device, before they are asked for."""


def too_large(sizes: Mapping[str, int], free: float) -> tuple[str, ...]:
    """Return which arrays (bytes by name) stay in their files beside `free` bytes: the largest, until the rest fits.

    All that live on the device together take at most what `RESERVE` leaves of the free bytes.
    """
    left = dict(sizes)
    while sum(left.values()) > (1 - RESERVE) * free:
        del left[max(left, key=left.__getitem__)]
    return tuple(name for name in sizes if name not in left)


def free_bytes(device: torch.device) -> float:
    """Return how many bytes a device can still hold; the CPU needs none, because arrays are mapped from their files."""
    if device.type != "cuda":
        return math.inf
    # What earlier cells of this process have used and given back is free for this one.
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


@dataclass(frozen=True)
class Stored:
    """An array (rows, *shape) that stays in its file.

    `mapped` is not what batches are read through: a row that is not in memory costs a page fault for every few
    kilobytes there, and one call here.
    """

    mapped: np.memmap[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and the shape of one."""
        return tuple(self.mapped.shape)

    def read(self, rows: Tensor, *, pinned: bool = False) -> Tensor:
        """Return these rows (B, *shape) in a fresh tensor on the CPU; raises DataError where the file ends too early.

        A `pinned` one can be sent to the device while others compute.
        """
        kind = torch.from_numpy(np.empty(0, self.mapped.dtype)).dtype
        found = torch.empty(len(rows), *self.shape[1:], dtype=kind, pin_memory=pinned)
        places = found.numpy().reshape(len(rows), -1).view(np.uint8)
        path = Path(str(self.mapped.filename))
        with path.open("rb", buffering=0) as file:
            for row, place in zip(rows.tolist(), places, strict=True):
                count = os.preadv(file.fileno(), [place.data], self.mapped.offset + row * place.nbytes)
                if count != place.nbytes:
                    raise DataError(
                        f"{path} ends in row {row} of {len(self.mapped)}. Run `equipoise prepare {path.parent.name}`."
                    )
        return found


@dataclass(frozen=True)
class _Sent:
    """Tensors on their device, or on their way there: `arrived` has happened when they are whole."""

    values: dict[str, Tensor]
    arrived: torch.cuda.Event | None = None

    def received(self) -> dict[str, Tensor]:
        """Return the tensors; what this thread has the device compute from now on waits until they are whole."""
        if self.arrived is not None:
            for values in self.values.values():
                current = torch.cuda.current_stream(values.device)
                current.wait_event(self.arrived)
                values.record_stream(current)
        return self.values


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    # One for all epochs: PyTorch keeps the memory of every stream apart.
    return torch.cuda.Stream(device)


def _read(arrays: Mapping[str, Stored], rows: Mapping[str, Tensor], device: torch.device) -> _Sent:
    """Read one batch and send it to the device beside what that computes."""
    pinned = device.type == "cuda"
    found = {name: array.read(rows[name], pinned=pinned) for name, array in arrays.items()}
    if not pinned:
        return _Sent({name: values.to(device) for name, values in found.items()})
    with torch.cuda.stream(_beside(device)):
        return _Sent(
            {name: values.to(device, non_blocking=True) for name, values in found.items()},
            torch.cuda.current_stream(device).record_event(),
        )


def read_ahead(
    arrays: Mapping[str, Stored],
    rows: Mapping[str, Sequence[Tensor]],
    device: torch.device,
    *,
    threads: int = THREADS,
    ahead: int = AHEAD,
) -> Generator[dict[str, Tensor]]:
    """Yield, batch by batch, the rows (B, *shape) of every array on `device`, as they are stored.

    `rows` (CPU) are those of every batch, by array. Up to `ahead` batches are read by `threads` threads before they are
    asked for; what goes wrong there is raised here. The threads end with the generator.
    """
    batches = (dict(zip(rows, chunks, strict=True)) for chunks in zip(*rows.values(), strict=True))
    waiting: deque[Future[_Sent]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="equipoise reader")
    try:
        while True:
            waiting.extend(
                pool.submit(_read, arrays, batch, device) for batch in islice(batches, ahead + 1 - len(waiting))
            )
            if not waiting:
                return
            yield waiting.popleft().result().received()
    finally:
        pool.shutdown(cancel_futures=True)
