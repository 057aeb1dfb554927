"""The balance / non-conflict plane: where a step with two modalities stands (RGM, AAAI 2026; its equation numbers).

Vectors hold a pair of modalities first: `(2, ...)`, i then j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.gradients import NEGLIGIBLE_SQUARE


def accumulate(energy: Tensor | float, gradient: Tensor, learning_rate: float) -> Tensor:
    """Return the cumulative gradient energy, float64, after a step with `gradient` `(B, d)` (Eq. 3)."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    return (learning_rate * norm).square() + energy


def shares(energies: Tensor) -> Tensor:
    """Return w = E / (E_i + E_j) from a pair's energies `(2,)`; equal shares while both are zero."""
    return (energies / energies.sum()).nan_to_num(0.5)


def balance_factor(share: Tensor) -> Tensor:
    """Return the plane's balance axis 8 w_i w_j - 1 in [-1, 1] from a pair's shares `(2, ...)` (Eq. 5)."""
    return 8 * share.prod(0) - 1


def non_conflict(dot: Tensor, squares: Tensor) -> Tensor:
    """Return the plane's conflict axis, cosines from <g_i, g_j> and squared norms `(2, ...)` (Eq. 6).

    A norm below 1e-12 has no direction and counts as 1e-12: the cosine with a zero gradient is 0.
    """
    return dot * squares.clamp_min(NEGLIGIBLE_SQUARE).rsqrt().prod(0)
