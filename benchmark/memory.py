"""Memory of a process that runs many cells: the peak of one, and what the C library keeps."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path
from types import TracebackType

import torch

_KIBIBYTE = 1024
# Parameters of `mallopt`: how many blocks are mapped apart, and how much free memory is kept (-1: all).
_MOST_MAPPED, _TRIM_THRESHOLD = -4, -1


class PeakMemory:
    """Context manager whose `peak` is the largest memory in bytes: allocated on a GPU, resident on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # Linux forgets the old high-water mark; elsewhere the peak is that of the whole process.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident_peak()


def _resident_peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _KIBIBYTE
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * _KIBIBYTE


def keep_freed_memory() -> None:
    """Have the C library keep what tensors on the CPU give back for those that follow, where it is GNU's.

    It would return every large block to the system, and the next one would be paid for page by page: on a virtual
    machine this costs more than to decode and crop a batch.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_MOST_MAPPED, 0)
        tune(_TRIM_THRESHOLD, -1)
