"""Small data and encoders that tests of several methods share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.data import Part

WIDTHS = {"a": 4, "b": 5, "c": 6}
SHAPES: dict[str, tuple[int, ...]] = {"a": (4,), "b": (3,), "c": (5,)}


class KilledError(Exception):
    """Stands for a killed process."""


class DisturbableEncoder(nn.Module):
    """Has what side training could disturb: running statistics and random layers."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.BatchNorm1d(shape[0]), nn.Linear(shape[0], width), nn.Tanh(), nn.Dropout(0.2))

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


def noisy_part(modalities: str, samples: int) -> Part:
    """Return three classes, shown by every modality under noise of its own."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 3
    means = torch.eye(3)[labels]
    return Part.from_tensors({m: means + torch.randn(samples, 3, generator=generator) for m in modalities}, labels)


def telling_part(samples: int, seed: int) -> Part:
    """Return three classes that the first of three modalities tells and the others do not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    inputs = {m: torch.randn(samples, *shape, generator=generator) for m, shape in SHAPES.items()}
    inputs["a"][:, :3] += torch.eye(3)[labels]
    return Part.from_tensors(inputs, labels)


PARTS = {"train": telling_part(40, 0), "val": telling_part(15, 1), "test": telling_part(15, 2)}
