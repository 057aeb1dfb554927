"""What a run holds in memory, so that runs can be compared: the allocator's count on a GPU, living tensors on a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LivingTensors(TorchDispatchMode):
    """Context manager whose `peak` is the most bytes that tensors made inside it held at one time.

    A CPU has no allocator that counts, and the process's resident memory holds libraries and what was freed. What an
    operation takes and gives back before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages that it has made: neither views nor what it changed in place."""
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if _counts(tensor)}
        result = func(*args, **(kwargs or {}))
        made = {tensor.untyped_storage() for tensor in tree_leaves(result) if _counts(tensor)}
        for storage in made:
            if storage.data_ptr() not in given:
                self._hold(storage)
        self.peak = max(self.peak, self.held)
        return result

    def _hold(self, storage: UntypedStorage) -> None:
        size = storage.nbytes()
        self.held += size
        weakref.finalize(storage, self._release, size).atexit = False

    def _release(self, size: int) -> None:
        self.held -= size


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "meta"


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most memory in bytes that `run` held at one time beyond what was there before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    living = LivingTensors()
    with living:
        run()
    return living.peak
