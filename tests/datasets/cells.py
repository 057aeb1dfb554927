"""What a tiny cell on clips needs: an encoder that takes frames and spectrograms, and none of its data kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from benchmark import run
from benchmark.backbones import Backbone
from benchmark.registry import BACKBONES, Entry


class Grid(Backbone):
    """Means over the frames and a grid of 4 x 4 cells, then one layer."""

    width = 8

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.layer = nn.Linear(shape[0] * 16, self.width)

    def forward(self, inputs: Tensor, first: int = 0) -> Tensor:
        frames = inputs.mean(dim=2) if inputs.ndim == 5 else inputs
        return torch.relu(self.layer(nn.functional.adaptive_avg_pool2d(frames, 4).flatten(1)))


def forget() -> None:
    for kept in (run._data, run._parts):
        kept.cache_clear()


@contextmanager
def tiny_backbone() -> Iterator[str]:
    """Register `Grid` under the name that is given, and forget which data cells have read."""
    entry = Entry("grid", __name__, "Grid", "backbone", "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES._entries, "grid", entry)
        forget()
        yield "grid"
        forget()
