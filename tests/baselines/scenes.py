"""Small data and encoders that tests of several methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.context import Context, Run
from benchmark.data import Part
from benchmark.diagnostics import Diagnostics
from benchmark.method import Method, Plan
from benchmark.model import MultimodalModel, same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.training import Fit

WIDTHS = {"a": 4, "b": 5, "c": 6}
SHAPES: dict[str, tuple[int, ...]] = {"a": (4,), "b": (3,), "c": (5,)}


class KilledError(Exception):
    """Stands for a killed process."""


class TanhEncoder(nn.Module):
    """One layer without anything random."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(shape[0], width)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.linear(inputs).tanh()
        return features


class NormedEncoder(nn.Module):
    """Has batch statistics and a random layer."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(shape[0], width), nn.BatchNorm1d(width), nn.Dropout(0.2))

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


class DisturbableEncoder(nn.Module):
    """Has what side training could disturb: running statistics and random layers."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.BatchNorm1d(shape[0]), nn.Linear(shape[0], width), nn.Tanh(), nn.Dropout(0.2))

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


def random_part(sizes: Mapping[str, int], samples: int, seed: int) -> Part:
    """Return noise of each modality's size, labelled by three classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {m: torch.randn(samples, size, generator=generator) for m, size in sizes.items()}
    return Part.from_tensors(inputs, torch.arange(samples) % 3)


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


def descent(lr: float) -> Optimizer:
    """Return plain gradient descent; with learning rate 1 a step subtracts the gradient itself."""
    return Optimizer(lr=lr, momentum=0.0, weight_decay=0.0)


def context(
    method: Method,
    model: MultimodalModel,
    train: Part,
    batch_size: int,
    *,
    val: Part | None = None,
    epochs: int | None = None,
    optimizer: Optimizer | None = None,
    diagnostics: Diagnostics | None = None,
) -> Context:
    """Return the context of a run with seed 0, by default of plain gradient descent with learning rate 1."""
    val, epochs = val or train, epochs or method.task.epochs
    plan = Plan(epochs, len(train), len(val), method.task.modalities, batch_size)
    protocol = Protocol(epochs=epochs, batch_size=batch_size, optimizer=optimizer or descent(1.0))
    run = Run(method.task, plan, train, val, 0, protocol)
    return Context(run, model, method.parameters(model), diagnostics=diagnostics)


def resumes(train: Callable[..., Fit], checkpoint: Path, epoch: int) -> None:
    """Assert that a run killed after an epoch, and continued from its checkpoint, ends like an undisturbed one.

    `train` begins a run with a fresh method each time and passes its settings on to `fit`.
    """

    def kill(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise KilledError

    whole = train()
    with pytest.raises(KilledError):
        train(checkpoint=checkpoint, checkpoint_seconds=0, on_epoch=kill)
    resumed = train(checkpoint=checkpoint)
    assert resumed.epochs == whole.epochs
    assert (resumed.passes, resumed.steps) == (whole.passes, whole.steps)
    assert same_parameters(resumed.model, whole.model)
