"""Losses that several methods share: how unit vectors of several modalities lie to one another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

BASE_TEMPERATURE = 0.07
"""The usual code of the contrast multiplies it by its temperature over this one, by 1.43 at a temperature of 0.1."""


def supervised_contrast(
    views: Sequence[Tensor], labels: Tensor, temperature: float, base_temperature: float = BASE_TEMPERATURE
) -> Tensor:
    """Return the supervised contrastive loss of unit vectors `(B, d)`, one view per modality, with labels `(B,)`.

    Positives of a vector are all others of its class, in any modality; it is compared with all others. Khosla et al.,
    NeurIPS 2020, Eq. 2, times temperature over base temperature.
    """
    vectors, classes = torch.cat(list(views)), labels.repeat(len(views))
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    similarity = vectors @ vectors.T / temperature
    shares = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positives = ((classes[:, None] == classes) & ~itself).to(vectors.dtype)
    found: Tensor = (positives * shares).sum(1) / positives.sum(1)
    return -temperature / base_temperature * found.mean()


def unit_distance(values: Tensor, target: Tensor) -> Tensor:
    """Return the distance of the unit vectors of values and targets `(B, d)`, batch mean: from 0 to 2."""
    apart = functional.normalize(values, dim=1) - functional.normalize(target, dim=1)
    distances: Tensor = torch.linalg.vector_norm(apart, dim=1)
    return distances.mean()
