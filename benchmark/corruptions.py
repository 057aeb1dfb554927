"""Graded corruptions of one modality's normalised inputs `(B, *shape)`, at severities 1 to 3.

`shape` is (d,), or anything whose last two axes are spatial or time: (C, H, W), (C, T, H, W). The generator is used by
`noise` alone, which draws sample by sample: what a sample gets depends on its place in the part, not on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmark import seeding

if TYPE_CHECKING:
    from benchmark.data import Batch, Part

Corruption = Callable[[Tensor, int, Generator], Tensor]

SEVERITIES = (1, 2, 3)
SEED = 0


def noise(values: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise of SD 0.5, 1 or 2 in normalised units; `generator` is on the CPU."""
    drawn = torch.stack([torch.randn(values.shape[1:], generator=generator) for _ in values])
    return values + 2.0 ** (severity - 2) * drawn.to(values)


def blur(values: Tensor, severity: int, _generator: Generator) -> Tensor:
    """Average each value with its neighbours along the last two axes (vectors: along their one), within the input.

    The window reaches `severity` times 1/32 of an axis, at least `severity` values, to both sides.
    """
    for axis in (-1,) if values.ndim == 2 else (-2, -1):
        lines = values.transpose(axis, -1)
        size = lines.shape[-1]
        reach = severity * max(1, size // 32)
        pooled = functional.avg_pool1d(lines.reshape(-1, size), 2 * reach + 1, 1, reach, count_include_pad=False)
        values = pooled.view(lines.shape).transpose(axis, -1)
    return values


def dropout(values: Tensor, severity: int, _generator: Generator) -> Tensor:
    """Set a stripe in the middle of the last axis, 25, 50 or 75 % of it, to the mean, which is 0."""
    size = values.shape[-1]
    width = math.ceil(severity * size / 4)
    start = (size - width) // 2
    values = values.clone()
    values[..., start : start + width] = 0
    return values


CORRUPTIONS: Mapping[str, Corruption] = {"noise": noise, "blur": blur, "dropout": dropout}


def corrupted(part: Part, modality: str, corruption: str, severity: int, batch_size: int) -> Iterator[Batch]:
    """Yield a part's batches in sample order with one modality corrupted; every call yields the same."""
    generator = seeding.generator(SEED, "corruption")
    for batch in part.batches(batch_size):
        values = CORRUPTIONS[corruption](batch.inputs[modality], severity, generator)
        yield replace(batch, inputs={**batch.inputs, modality: values})
