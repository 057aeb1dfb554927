"""How a process trains: with deterministic kernels, and keeping freed memory for the next step."""

from __future__ import annotations

import os

import torch

from benchmark.memory import keep_freed_memory


def prepare() -> None:
    """Make this process's training deterministic and let it keep freed memory; of no effect the second time."""
    make_deterministic()
    keep_freed_memory()


def make_deterministic() -> None:
    """Choose deterministic kernels, and for cuBLAS the workspace they need; an operation without one warns."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # On by default: every new tensor is filled with NaN, in case some operation reads what it has not written. None
    # does (a test fills and compares), and a step of small kernels has dozens of new tensors.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no stub has it
