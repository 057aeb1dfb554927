"""The cost check of `equipoise check`: does a step take the time that the declared passes predict?

Passes predict time where the encoders are the cost. Here they have few parameters and much to compute, so that heads,
optimiser and a method's own mathematics on gradients weigh as little as they do with the encoders people train.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from benchmark.backbones import Backbone
from benchmark.bench import clock, ratio
from benchmark.conformance_task import domain_labels
from benchmark.conformance_trial import Cost, Finding, Outcome, Trial
from benchmark.data import Part
from benchmark.errors import EquipoiseError
from benchmark.method import Method, Plan
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import fit

COST_TOLERANCE = 0.15
"""Largest accepted deviation of the measured cost per step from the declared one, as a fraction of the latter."""
ROUNDS = 3
EPOCHS = 7
BATCH = 24
CUDA_BATCH = 2048
"""A GPU finishes a small batch before the next kernel is launched: launches, not encoders, would be the cost."""
STEPS = 2
CLASSES = 3
_SHAPE = (1, 16, 16)
_SEED = 0


class Convolutions(Backbone):
    """Two stages of three 3 x 3 convolutions with 32 channels on 16 x 16 maps: 46,000 parameters, 12 million products.

    Its backward costs two forwards, as `Passes.relative` assumes (measured on a CPU: 2.0). The first layer, which needs
    no gradient of its input, is cheap because it has one input channel. Wider maps leave the cache, and the forward
    then pays for memory that the backward finds warm: at 32 x 32 the ratio falls to 1.65.
    """

    width = 32
    stage_widths = (32, 32)

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        convolutions = (nn.Conv2d(channels, 32, 3, padding=1) for channels in (shape[0], *[32] * 5))
        layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())]
        self.stages = nn.ModuleList([nn.Sequential(*layers[:6]), nn.Sequential(*layers[6:])])

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Map `(B, c, 16, 16)` to `(B, 32, 16, 16)`."""
        mapped: Tensor = self.stages[number](hidden)
        return mapped

    def pool(self, hidden: Tensor) -> Tensor:
        """Map `(B, 32, 16, 16)` to its means `(B, 32)`."""
        return hidden.mean((2, 3))


def cost_task(modalities: int) -> Task:
    """Return the task whose encoders are its cost."""
    shapes = {f"m{number}": _SHAPE for number in range(modalities)}
    return Task(shapes, CLASSES, EPOCHS, lambda _modality, shape: Convolutions(shape))


def batch_size() -> int:
    """Return samples per step on this machine's device."""
    return CUDA_BATCH if torch.cuda.is_available() else BATCH


@cache
def _parts(modalities: int) -> dict[str, Part]:
    """Return random data; validation is small, for evaluation is not what a step costs."""
    generator = torch.Generator().manual_seed(7)

    def part(size: int) -> Part:
        inputs = {f"m{number}": torch.randn(size, *_SHAPE, generator=generator) for number in range(modalities)}
        return Part.from_tensors(inputs, torch.arange(size) % CLASSES, domain_labels(size))

    return {"train": part(STEPS * batch_size()), "val": part(2 * CLASSES), "test": part(2 * CLASSES)}


def _seconds(method: Method) -> float:
    """Return what training takes; the learning rate never diverges."""
    protocol = Protocol(epochs=EPOCHS, batch_size=batch_size(), optimizer=Optimizer(lr=1e-4))
    return fit(method, _parts(len(method.task.modalities)), protocol, _SEED, clock=clock).training_seconds


def measured_cost(trial: Trial, rounds: int = ROUNDS) -> Cost:
    """Return a method's cost against joint training's, measured in turns."""
    task = cost_task(trial.modalities)
    parts = _parts(trial.modalities)
    plan = Plan(EPOCHS, len(parts["train"]), len(parts["val"]), task.modalities, batch_size())
    declared = trial.build(task).expected_passes(plan)
    measured = ratio(lambda: _seconds(trial.build(task)), lambda: _seconds(trial.joint().build(task)), rounds)
    return Cost(declared, measured)


def cost_as_declared(trial: Trial) -> Finding:
    """A step costs what the declared passes predict, in multiples of joint training's."""
    try:
        trial.build(cost_task(trial.modalities))
    except EquipoiseError as error:
        return Finding(Outcome.REFUSED, str(error))
    cost = measured_cost(trial)
    if abs(cost.deviation) > COST_TOLERANCE:
        # A busy machine disturbs a short measurement; a longer one decides.
        cost = measured_cost(trial, 3 * ROUNDS)
    within = abs(cost.deviation) <= COST_TOLERANCE
    reason = str(cost) if within else f"{cost}, which is more than {COST_TOLERANCE:.0%} off"
    return Finding(Outcome.PASSED if within else Outcome.FAILED, reason, cost)
