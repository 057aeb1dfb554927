"""One stream of random numbers per axis, derived by hashing.

Seed s shares initialisation and batch order across methods, and a random draw added on one axis moves no other.
Streams are derived anew for every epoch, so that resuming needs no saved generator.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager

import torch


def derive(seed: int, axis: str, *parts: int | str) -> int:
    """Return the 63-bit seed of one axis (and epoch, or fork) of a cell's seed."""
    text = "/".join(str(part) for part in (seed, axis, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, axis: str, *parts: int | str) -> torch.Generator:
    """Return a CPU generator for one axis."""
    return torch.Generator().manual_seed(derive(seed, axis, *parts))


def isolated() -> AbstractContextManager[None]:
    """Return a context after which the process's random state, on every device, is what it was before."""
    devices = range(torch.cuda.device_count())
    return torch.random.fork_rng(devices=devices)  # naming the devices silences a warning meant for forgetful callers
