"""The contract of a method: everything that differs between two rows of a table.

Three shapes cover most methods: override `losses`, `modulate_features` or `modulate_parameters`. The others override
`step`, `batches` or the epoch hooks. Forward, backward and extra passes are counted where they happen, never declared
by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional

from benchmark.model import MultimodalModel, Prediction
from benchmark.task import Task

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

REFERENCE = "joint"
"""The method that every other one is compared with: cost, conformance and the first family of tests."""


class MethodOptions(BaseModel):
    """Hyper-parameters and readings of a method: validated, immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def option(default: Any, meaning: str, **constraints: Any) -> Any:
    """Declare a hyper-parameter with its meaning and range (`ge`, `gt`, `le`, `lt`)."""
    return Field(default, description=meaning, json_schema_extra={"reading": False}, **constraints)


def reading(default: Any, reason: str) -> Any:
    """Declare a reading: where paper and code disagree or leave a gap, with the reason for the default."""
    return Field(default, description=reason, json_schema_extra={"reading": True})


def _sum_to_one(weights: dict[str, float]) -> dict[str, float]:
    # Published weights are rounded to three digits.
    if not abs(sum(weights.values()) - 1) <= 0.005:
        raise ValueError(f"weights must sum to 1, found {sum(weights.values()):g}.")
    return weights


Weights = Annotated[dict[str, NonNegativeFloat], AfterValidator(_sum_to_one)]
"""Type of an option: weights by name, which sum to 1."""


@dataclass(frozen=True)
class Passes:
    """Encoder passes per training sample and epoch, averaged over modalities; joint training is (1, 1)."""

    forward: float = 1.0
    backward: float = 1.0

    @property
    def relative(self) -> float:
        """Cost against joint training when a backward pass costs two forward passes."""
        return (self.forward + 2 * self.backward) / 3


@dataclass(frozen=True)
class Plan:
    """Size of a run, from which a method predicts its passes: epochs, samples, batch size."""

    epochs: int
    train: int
    val: int
    modalities: tuple[str, ...]
    batch_size: int


class Intervention(StrEnum):
    """Where a method acts."""

    FEATURE_GRADIENT = "feature gradient"
    PARAMETER_GRADIENT = "parameter gradient"
    LOSS = "loss"
    FORWARD = "forward"
    DATA = "data"
    SCHEDULE = "schedule"
    REINITIALISATION = "re-initialisation"
    EXTRA_PASSES = "extra passes"
    DOMAIN_ADVERSARY = "domain adversary"


def unimodal_losses(forward: Forward, labels: Tensor) -> dict[str, Tensor]:
    """Return each encoded modality's own cross-entropy, named `unimodal <modality>`."""
    return {f"unimodal {name}": functional.cross_entropy(value, labels) for name, value in forward.unimodal.items()}


def summed_confidences(logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return each modality's true-class probabilities, summed over the batch, `(M,)` from logits `(B, C)`."""
    return torch.stack([values.softmax(1).gather(1, labels[:, None]).sum() for values in logits.values()])


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of named scalar losses."""
    values = list(losses.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()


Group = Literal["encoders", "fusion", "head"]


@dataclass(frozen=True)
class MethodInfo:
    """Where a method comes from, what it touches and what it costs."""

    title: str
    paper: str
    venue: str
    arxiv: str | None
    origin: str
    licence: str
    category: Literal["reference", "imbalance", "conflict", "both"]
    interventions: frozenset[Intervention]
    changes: frozenset[Group]
    passes: Passes = Passes()
    min_modalities: int = 2
    min_domains: int = 0
    max_modalities: int | None = None
    equal_widths: bool = False
    linear_head: bool = False
    fusions: frozenset[str] | None = None


class Method:
    """One training strategy; its state lives on the instance, its mathematics in functions beside it."""

    info: ClassVar[MethodInfo]
    noop: ClassVar[Mapping[str, object] | None] = None
    """Options under which training equals joint training bit for bit, where the method has such a setting."""
    adversarial: ClassVar[bool] = True
    """Whether encoders also learn to hide the domain, where the protocol trains on several."""
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Options that the authors use on a dataset, by its name, where paper or code gives them."""

    class Options(MethodOptions):
        """No options."""

    def __init__(self, options: Any, task: Task) -> None:
        self.options = options
        self.task = task

    @classmethod
    def refuses(cls, options: Any, task: Task) -> str | None:
        """Return why the method cannot run on `task`, and what would work; None when it can."""
        info, count = cls.info, len(task.modalities)
        if count < info.min_modalities:
            return f"needs at least {info.min_modalities} modalities, found {count} ({', '.join(task.modalities)})"
        if len(task.domains) < info.min_domains:
            found = ", ".join(task.domains) or "none"
            return f"needs at least {info.min_domains} source domains, found {found}; name a target domain to leave out"
        if info.max_modalities is not None and count > info.max_modalities:
            return f"takes at most {info.max_modalities} modalities, found {count} ({', '.join(task.modalities)})"
        if info.equal_widths and len(set(task.widths.values())) > 1:
            return f"needs encoders of equal width, found {task.widths}; use a backbone with one width"
        if info.linear_head and task.hidden is not None:
            return (
                f"needs a linear head, found a hidden layer of {task.hidden} units; leave the protocol's `hidden` out"
            )
        name = task.fusion.__name__.lower()
        if info.fusions is not None and name not in info.fusions:
            return f"works with fusion {' or '.join(sorted(info.fusions))}, found {name}"
        return None

    @classmethod
    def sample_options(cls, task: Task) -> dict[str, Any]:
        """Return options for conformance runs where the defaults do not suffice."""
        return {}

    def build(self) -> MultimodalModel:
        """Build the model; extra heads live here."""
        return self.task.build_model()

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        """Return the parameters the method trains; all others stay as they were initialised."""
        return dict(model.named_parameters())

    def start_epoch(self, ctx: Context) -> None:
        """Run before an epoch: extra passes, reassignment, prototypes."""

    def batches(self, ctx: Context) -> Iterable[Batch]:
        """Return the epoch's training batches."""
        return ctx.batches()

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the named scalar losses whose sum is trained."""
        return {"fused": functional.cross_entropy(forward.logits, batch.labels)}

    def supervises(self, loss: str) -> bool:
        """Return whether the loss of this name teaches the classes; modulation leaves the gradients of others alone."""
        return True

    def modulate_features(
        self,
        gradients: dict[str, Tensor],
        forward: Forward,
        batch: Batch,
        ctx: Context,
    ) -> dict[str, Tensor]:
        """Rewrite all modalities' feature gradients `(B, d_m)` before they enter the encoders."""
        return gradients

    def modulate_parameters(
        self, gradients: dict[str, dict[str, Tensor]], forward: Forward, batch: Batch, ctx: Context
    ) -> None:
        """Edit the encoders' parameter gradients, by modality and parameter name, in place."""

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch: losses, two-phase backward, modulation, clipping, optimiser step."""
        forward = ctx.forward(batch)
        loss = total(self.losses(forward, batch, ctx))
        gradients = ctx.feature_gradients(forward, loss)
        ctx.encoder_backward(forward, self.modulate_features(gradients, forward, batch, ctx))
        self.modulate_parameters(ctx.encoder_grads(), forward, batch, ctx)
        ctx.update(loss)

    def step_per_loss(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch with every loss's gradients apart: one encoder backward per loss, one forward."""
        forward = ctx.forward(batch)
        losses = self.losses(forward, batch, ctx)
        apart: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in forward.features}
        for loss, gradients in ctx.feature_gradients_per_loss(forward, losses).items():
            for modality, values in ctx.encoder_gradients(forward, gradients).items():
                apart[modality][loss] = values
        ctx.set_encoder_grads({name: self.combine_losses(name, by_loss, ctx) for name, by_loss in apart.items()})
        ctx.update(total(losses))

    def end_step(self, ctx: Context) -> None:
        """Run after a step, whoever changed it: averages of weights."""

    def combine_losses(self, modality: str, gradients: dict[str, dict[str, Tensor]], ctx: Context) -> dict[str, Tensor]:
        """Return one encoder's gradient by parameter name from those of the losses that reach it (`step_per_loss`)."""
        raise NotImplementedError(f"{type(self).__name__} calls step_per_loss and must define combine_losses")

    def end_epoch(self, ctx: Context) -> None:
        """Run after an epoch's last step and before its evaluation."""

    def predict(self, model: MultimodalModel, batch: Batch) -> Prediction:
        """Return the logits by which the method is judged."""
        return model.predict(batch.inputs)

    def expected_passes(self, plan: Plan) -> Passes:
        """Return the passes that a run of this size takes."""
        return self.info.passes

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming after an epoch needs: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; its tensors come back on the CPU."""
