"""What is kept of a trained model's fused features: a few test samples of every domain, in few dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmark.model import evaluating

if TYPE_CHECKING:
    from benchmark.data import Part
    from benchmark.model import MultimodalModel

DIMENSIONS = 16
"""Principal components that are recorded, at most."""

DIGITS = 4
"""Significant digits of a recorded number: more would not show."""


def evenly_chosen(count: int, n: int) -> Tensor:
    """Return at most `count` of the positions 0 .. n-1, evenly spaced, ascending."""
    kept = min(count, n)
    return (torch.arange(kept) * n) // max(kept, 1)


def principal_components(vectors: Tensor, most: int = DIMENSIONS) -> tuple[Tensor, float]:
    """Return the scores `(n, k)`, k <= most, of vectors `(n, D)` on their first components, and the kept variance.

    Variance is a share from 0 to 1; that of vectors which are all the same is kept whole. Of each component the entry
    that is largest in size is positive, so that no library decides the sign.
    """
    centred = vectors.double() - vectors.double().mean(0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = directions[:most]
    largest = kept.gather(1, kept.abs().argmax(1, keepdim=True))
    total = sizes.square().sum()
    share = float(sizes[:most].square().sum() / total) if total > 0 else 1.0
    return centred @ (kept * largest.sign()).T, share


def _samples(parts: Mapping[str, Part], sources: Sequence[str], count: int) -> Iterator[tuple[int | None, Part]]:
    """Yield the chosen test samples of every source domain, by its place, and of the test part itself, by None."""
    for place in range(len(sources)):
        domains = parts["sources"].domains
        assert domains is not None, "source domains label their samples"
        own = (domains == place).nonzero().squeeze(1)
        yield place, parts["sources"].subset(own[evenly_chosen(count, len(own)).to(own.device)])
    yield None, parts["test"].subset(evenly_chosen(count, len(parts["test"])))


@torch.no_grad()
def recorded_features(
    model: MultimodalModel, parts: Mapping[str, Part], sources: Sequence[str], count: int, batch_size: int
) -> dict[str, Any]:
    """Return the fused features of `count` test samples of every source domain and of the part "test", as plain data.

    Per sample: its label, its domain (place in `sources`; None: the part "test", a target domain where there are
    sources), and its first principal components among the samples. Needs the part "sources" where there are sources.
    """
    domains: list[int | None] = []
    labels, vectors = [], []
    with evaluating(model):
        for domain, part in _samples(parts, sources, count):
            for batch in part.batches(batch_size):
                vectors.append(model.fuse(model.encode(batch.inputs)).float().cpu())
                labels += batch.labels.tolist()
                domains += [domain] * len(batch)
    scores, share = principal_components(torch.cat(vectors))
    return {
        "sources": list(sources),
        "labels": labels,
        "domains": domains,
        "values": [[float(f"{value:.{DIGITS}g}") for value in row] for row in scores.tolist()],
        "variance": round(share, DIGITS),
    }
