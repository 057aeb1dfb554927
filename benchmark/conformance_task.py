"""The synthetic task on which methods are checked: hundreds of runs in seconds, every kind of parameter and buffer."""

from __future__ import annotations

from enum import Enum
from functools import cache

import torch
from torch import Tensor, nn

from benchmark.backbones import Backbone
from benchmark.data import Part
from benchmark.fusion import Concat, Fusion
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task

EPOCHS = 9
BATCH = 12
TRAIN = 42
CLASSES = 3
SOURCES = ("north", "south")
"""Domains of the training data, for methods that need some."""
_SHAPE = (1, 4, 4)


class Widths(Enum):
    """Features of the three encoders."""

    EQUAL = (8, 8, 8)
    UNEQUAL = (8, 6, 10)


class Tiny(Backbone):
    """Convolution, batch norm and projection: 4-D kernels, vectors, matrices and buffers in 300 numbers."""

    stage_widths = (3,)

    def __init__(self, width: int) -> None:
        super().__init__(_SHAPE)
        self.width = width
        self.convolution = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.project = nn.Linear(3 * 16, width)

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Map `(B, 1, 4, 4)` to `(B, 3, 4, 4)`: convolution, batch norm, ReLU."""
        return torch.relu(self.norm(self.convolution(hidden)))

    def pool(self, hidden: Tensor) -> Tensor:
        """Map `(B, 3, 4, 4)` to `(B, width)`."""
        features: Tensor = self.project(hidden.flatten(1))
        return features


class TinyTransformer(nn.Module):
    """Patch embedding, class token and one block of attention: the parameters that only transformers have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) / 4)
        self.positions = nn.Parameter(torch.randn(1, 1 + 4, width) / 4)
        # Without dropout: a method may pass the same batch twice and compare.
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(B, 1, 4, 4)` to the class token's last state `(B, width)`."""
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(inputs), -1, -1), patches], dim=1) + self.positions
        features: Tensor = self.norm(self.block(tokens)[:, 0])
        return features


class Encoder(Enum):
    """Architectures of the check task's encoders."""

    CONVOLUTION = Tiny
    TRANSFORMER = TinyTransformer


def check_task(
    modalities: int, widths: Widths, fusion: type[Fusion] = Concat, encoder: Encoder = Encoder.CONVOLUTION
) -> Task:
    """Return a task with `modalities` modalities."""
    names = [f"m{number}" for number in range(modalities)]
    by_name = dict(zip(names, widths.value, strict=False))
    return Task(
        shapes=dict.fromkeys(names, _SHAPE),
        classes=CLASSES,
        epochs=EPOCHS,
        backbone=lambda modality, _shape: encoder.value(by_name[modality]),
        fusion=fusion,
    )


def check_protocol() -> Protocol:
    """Return a short recipe with momentum and weight decay."""
    # At this learning rate a stronger adversary, whose loss has no upper bound, diverges.
    return Protocol(epochs=EPOCHS, batch_size=BATCH, optimizer=Optimizer(lr=0.05), reversal=0.1)


def domain_labels(samples: int) -> Tensor:
    """Return a source domain per sample `(n,)`, of which every class is in each; methods without domains ignore it."""
    return torch.arange(samples) // CLASSES % len(SOURCES)


@cache
def check_parts(modalities: int, train: int = TRAIN, dead: str | None = None) -> dict[str, Part]:
    """Return separable classes with noise that differs by modality, so that one modality is stronger."""
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(modalities, CLASSES, *_SHAPE, generator=generator)
    parts = {}
    for name, size in (("train", train), ("val", 21), ("test", 21)):
        labels = torch.arange(size) % CLASSES
        inputs = {}
        for number in range(modalities):
            noise = torch.randn(size, *_SHAPE, generator=generator) * (2 + number)
            inputs[f"m{number}"] = (centres[number][labels] + noise) * (f"m{number}" != dead)
        parts[name] = Part.from_tensors(inputs, labels, domain_labels(size))
    return parts
