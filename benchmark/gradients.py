"""Pure tensor mathematics on gradients, shared by methods and by people with their own training loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEGLIGIBLE_NORM = 1e-12
"""A gradient with a smaller norm has no direction: cosines with it are 0 and nothing is projected on it."""
NEGLIGIBLE_SQUARE = NEGLIGIBLE_NORM**2
"""The square of such a norm."""


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return all entries as one vector `(P,)`."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector `(P,)` into tensors shaped as `like`."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two vectors `(P,)`, 0 where one of them is negligible."""
    norms = a.norm() * b.norm()
    return torch.where(
        norms > NEGLIGIBLE_SQUARE, torch.dot(a, b) / norms.clamp_min(NEGLIGIBLE_SQUARE), norms.new_zeros(())
    )


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the inner product, 0-d, of two vectors that lie in tensors of the same shapes, without joining them."""
    return torch.stack([torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in zip(a, b, strict=True)]).sum()


def conflict(product: Tensor, square: Tensor) -> Tensor:
    """Return the f of a vector's component f * `other`, 0-d, if they conflict (negative inner product), else 0.

    `product` is their inner product, `square` that of `other` with itself.
    """
    return torch.where((product < 0) & (square > NEGLIGIBLE_SQUARE), product / square.clamp_min(NEGLIGIBLE_SQUARE), 0.0)


def project_conflict(vector: Tensor, other: Tensor) -> Tensor:
    """Remove from `vector` `(P,)` its component along `other` if they conflict (negative inner product)."""
    return vector - conflict(torch.dot(vector, other), torch.dot(other, other)) * other


def min_norm_weight(a: Tensor, b: Tensor) -> float:
    """Return the s in [0, 1] that minimises ||s a + (1 - s) b|| for vectors `(P,)` (two-task min-norm problem)."""
    aa, bb, ab = torch.dot(a, a), torch.dot(b, b), torch.dot(a, b)
    spread = aa + bb - 2 * ab
    if spread <= NEGLIGIBLE_SQUARE:
        return 0.5
    return float(((bb - ab) / spread).clamp(0.0, 1.0))
