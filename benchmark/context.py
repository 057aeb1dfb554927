"""What a method may touch while training: the model, the training and validation data, and counted passes."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark import seeding
from benchmark.diagnostics import Diagnostics, PassCounter
from benchmark.errors import UsageError
from benchmark.method import Plan
from benchmark.model import MultimodalModel, evaluating
from benchmark.protocol import Protocol, Schedule

if TYPE_CHECKING:
    from benchmark.data import Batch, Part
    from benchmark.method import Method
    from benchmark.task import Task

Autocast = Callable[[], contextlib.AbstractContextManager[object]]


class Forward:
    """One forward pass, cut at the features.

    `encoded` are the encoders' outputs; `features` are detached leaves `(B, d_m)` on which losses are built, so that
    the head's backward stops there and the encoders' backward starts with whatever gradient the method supplies.
    """

    def __init__(
        self,
        model: MultimodalModel,
        encoded: dict[str, Tensor],
        autocast: Autocast,
        cut: bool,
        domains: Tensor | None = None,
    ) -> None:
        self.model = model
        self.encoded = encoded
        self.domains = domains
        self._autocast = autocast
        self.features: dict[str, Tensor] = (
            {name: value.detach().to(_master(value)).requires_grad_() for name, value in encoded.items()}
            if cut
            else encoded
        )

    def only(self, *modalities: str) -> Forward:
        """Return the same pass with some modalities alone: losses on it reach the same features."""
        part = copy.copy(self)
        part.features = {name: self.features[name] for name in modalities}
        part.__dict__.pop("logits", None)
        part.__dict__.pop("unimodal", None)
        return part

    @cached_property
    def logits(self) -> Tensor:
        """Fused logits `(B, C)`; a modality that was not encoded counts as zeros."""
        with self._autocast():
            logits = self.model.classify(self.features)
        return logits.to(_master(logits))

    @cached_property
    def unimodal(self) -> dict[str, Tensor]:
        """Logits `(B, C)` of each encoded modality alone."""
        with self._autocast():
            logits = self.model.unimodal_logits(self.features)
        return {name: value.to(_master(value)) for name, value in logits.items()}


def learning_rate(base: float, schedule: Schedule, epoch: float, epochs: int) -> float:
    """Return the learning rate of an epoch (from 0, or between two of them); cosine falls to 0 after the last one."""
    if schedule.name == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if schedule.name == "step":
        return base * math.pow(schedule.gamma, epoch // schedule.every)
    return base


def _given(part: Part | None, name: str) -> Part:
    if part is None:
        raise UsageError(
            f"The method reads the {name} data. Pass it to the module as a Part, not to the Trainer as a loader."
        )
    return part


def _master(tensor: Tensor) -> torch.dtype:
    """Reduced precision lives inside the networks only: gradients are modulated in float32 (or float64)."""
    return torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype


@dataclass
class Run:
    """What stays fixed during a run and is shared by a context and its forks."""

    task: Task
    plan: Plan
    train: Part | None
    val: Part | None
    seed: int
    protocol: Protocol
    autocast: Autocast = contextlib.nullcontext
    counter: PassCounter | None = None


class Context:
    """Handed to every hook of a method.

    `epoch` counts from 0; `generator` (CPU), and what `stream` returns, are the method's only sources of random numbers
    and are derived anew each epoch.
    """

    def __init__(
        self,
        run: Run,
        model: MultimodalModel,
        parameters: Mapping[str, nn.Parameter],
        *,
        diagnostics: Diagnostics | None = None,
        axis: str = "",
    ) -> None:
        self.run = run
        self.model = model
        # Walking the module tree costs more than a small encoder's backward: the names are collected once.
        self._parameters = list(model.parameters())
        self._encoders = {name: model.encoder_parameters(name) for name in model.modalities}
        self.task = run.task
        self.plan = run.plan
        self.epochs = run.plan.epochs
        self._diagnostics = diagnostics
        self._axis = axis
        # What is trained aside measures something else, and shares or copies the run's discriminator.
        self._hides_domain = model.discriminator is not None and not axis
        self._passes_over_data = 0
        self.lr = run.protocol.optimizer.lr
        self.steps = 0
        self.loss_sum: Tensor | float = 0.0
        self.loss_count = 0
        self.start(0)
        self.reset_optimizer(parameters)

    # --- life of a run: called by the loop ---

    def start(self, epoch: int) -> None:
        """Enter an epoch: every random stream is derived from it anew."""
        self.epoch = epoch
        self._passes_over_data = 0
        self.generator = seeding.generator(self.run.seed, "method", self._axis, epoch)
        self.loss_sum, self.loss_count = 0.0, 0
        self._notes: dict[str, list[Tensor | float]] = {}
        self._streams: dict[str, torch.Generator] = {}

    def enter(self, method: Method, epoch: int) -> None:
        """Begin an epoch: random streams, random layers (process-wide), learning rate, and the method's own start."""
        torch.manual_seed(seeding.derive(self.run.seed, "layers", epoch))
        protocol = self.run.protocol
        self.start(epoch)
        self.set_lr(learning_rate(protocol.optimizer.lr, protocol.schedule, epoch, protocol.epochs))
        method.start_epoch(self)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the optimiser and of those that replace it."""
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def reset_optimizer(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace the optimiser by a fresh one over these parameters alone (and the run's discriminator)."""
        settings = self.run.protocol.optimizer
        if self._hides_domain:
            parameters = {**parameters, **self.model.parameters_under("discriminator.")}
        values = list(parameters.values())
        self.trained = tuple(parameters)
        self.optimizer: torch.optim.Optimizer
        if settings.name == "sgd":
            self.optimizer = torch.optim.SGD(
                values, lr=self.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=True
            )
        else:
            kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
            self.optimizer = kind(values, lr=self.lr, weight_decay=settings.weight_decay, foreach=True)

    def mean_loss(self) -> float:
        """Return the mean of the epoch's recorded losses, NaN if there was none."""
        return float(self.loss_sum) / self.loss_count if self.loss_count else float("nan")

    def note(self, name: str, value: Tensor | float) -> None:
        """Record a number of the method's own; the epoch's record keeps the mean of each name's finite values.

        A ratio may have no logarithm in a batch of one sample: that is no reason to lose a run.
        """
        self._notes.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)

    def notes(self) -> dict[str, float]:
        """Return the epoch's mean of every noted name, over its finite values; a name without any is left out."""
        every = {name: [float(value) for value in values] for name, values in self._notes.items()}
        finite = {name: [value for value in values if math.isfinite(value)] for name, values in every.items()}
        return {name: sum(values) / len(values) for name, values in finite.items() if values}

    def stream(self, name: str) -> torch.Generator:
        """Return a generator (CPU) of this epoch that nobody else's draws move: for a host's draws in every step."""
        if name not in self._streams:
            self._streams[name] = seeding.generator(self.run.seed, "method", self._axis, self.epoch, name)
        return self._streams[name]

    # --- data ---

    @property
    def train(self) -> Part:
        """Training part; raises UsageError inside a Trainer that was given only a loader."""
        return _given(self.run.train, "training")

    @property
    def val(self) -> Part:
        """Validation part; raises UsageError inside a Trainer that was given none."""
        return _given(self.run.val, "validation")

    def batches(self, part: Part | None = None, *, indices: Tensor | None = None) -> Iterator[Batch]:
        """Yield shuffled, augmented batches of the training part, of another part, or of some of its samples.

        The first call in an epoch gives the order that every method shares; further calls give further orders.
        """
        turn = (self._axis, self.epoch, self._passes_over_data)
        self._passes_over_data += 1
        augment = seeding.generator(self.run.seed, "augmentation", *turn) if self.run.protocol.augment else None
        return (part if part is not None else self.train).batches(
            self.plan.batch_size,
            order=seeding.generator(self.run.seed, "order", *turn),
            indices=indices,
            augment=augment,
        )

    def evaluate(self, part: Part, only: Sequence[str] | None = None) -> Iterator[tuple[Batch, Forward]]:
        """Yield batches in sample order, un-augmented, with their forward pass in evaluation mode, no gradients."""
        with evaluating(self.model):
            for batch in part.batches(self.plan.batch_size):
                with torch.no_grad():
                    encoded = self._encode(batch, only)
                    yield batch, Forward(self.model, encoded, self.run.autocast, cut=False)

    # --- passes ---

    def _encode(self, batch: Batch, only: Sequence[str] | None) -> dict[str, Tensor]:
        with self.run.autocast():
            return self.model.encode(batch.inputs, only)

    def forward(self, batch: Batch, only: Sequence[str] | None = None) -> Forward:
        """Encode a batch, all modalities or those in `only`, and cut the graph at the features."""
        return Forward(self.model, self._encode(batch, only), self.run.autocast, cut=True, domains=batch.domains)

    def domain_loss(self, forward: Forward) -> Tensor | None:
        """Return the discriminator's cross-entropy, reversed for the features; None where no domain is to be hidden."""
        if not self._hides_domain or forward.domains is None:
            return None
        with self.run.autocast():
            logits = self.model.domain_logits(forward.features, self.run.protocol.reversal)
        return functional.cross_entropy(logits.to(_master(logits)), forward.domains)

    def feature_gradients(self, forward: Forward, loss: Tensor) -> dict[str, Tensor]:
        """Run phase one: fill the gradients of fusion and heads, return each modality's d loss / d z_m `(B, d_m)`.

        Where the domain is to be hidden, the domain loss is part of `loss`.
        """
        domain = self.domain_loss(forward)
        (loss if domain is None else loss + domain).backward()
        return self._observe(forward, self._collect(forward))

    def feature_gradients_per_loss(
        self, forward: Forward, losses: Mapping[str, Tensor], *, domain_apart: bool = False
    ) -> dict[str, dict[str, Tensor]]:
        """Run phase one for each loss alone; fusion and heads receive the gradient of the sum.

        A modality that a loss does not reach is missing from that loss's gradients. Where the domain is to be hidden,
        the domain loss is part of the first loss, or with `domain_apart` a last one of its own, named `domain`.
        """
        domain = self.domain_loss(forward)
        if domain is not None:
            name = "domain" if domain_apart else next(iter(losses))
            losses = {**losses, name: losses[name] + domain if name in losses else domain}
        result: dict[str, dict[str, Tensor]] = {}
        total: dict[str, Tensor] = {}
        for name, loss in losses.items():
            loss.backward(retain_graph=True)
            result[name] = self._collect(forward)
            for modality, gradient in result[name].items():
                total[modality] = total[modality] + gradient if modality in total else gradient
        self._observe(forward, total)
        return result

    @staticmethod
    def _collect(forward: Forward) -> dict[str, Tensor]:
        """Take the gradients that a backward pass has left on the cut features."""
        gradients = {name: leaf.grad for name, leaf in forward.features.items() if leaf.grad is not None}
        for leaf in forward.features.values():
            leaf.grad = None
        return gradients

    def _observe(self, forward: Forward, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Record and return the gradients of every encoded modality: zeros where no loss has reached it."""
        whole = {
            name: gradients[name] if name in gradients else torch.zeros_like(leaf)
            for name, leaf in forward.features.items()
        }
        if self._diagnostics is not None:
            self._diagnostics.observe(whole, self.lr)
        return whole

    def encoder_backward(self, forward: Forward, gradients: Mapping[str, Tensor]) -> None:
        """Run phase two: continue into the encoders of the modalities in `gradients`; the others stay untouched.

        So do encoders that the method does not train.
        """
        outputs = {name: forward.encoded[name] for name in gradients if forward.encoded[name].requires_grad}
        if outputs:
            torch.autograd.backward(
                list(outputs.values()), [gradients[name].to(output.dtype) for name, output in outputs.items()]
            )

    def encoder_gradients(self, forward: Forward, gradients: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the parameter gradients that feature gradients `(B, d_m)` cause, and leave `.grad` as it was.

        They are the caller's, to change in place.
        """
        result = {}
        for name, gradient in gradients.items():
            output = forward.encoded[name]
            if not output.requires_grad:
                continue
            parameters = {key: value for key, value in self._encoders[name].items() if value.requires_grad}
            before = {key: value.grad for key, value in parameters.items()}
            # By way of `.grad`: `torch.autograd.grad` may give two parameters the same tensor, accumulation copies it.
            for value in parameters.values():
                value.grad = None
            own = list(parameters.values())
            torch.autograd.backward(output, gradient.to(output.dtype), retain_graph=True, inputs=own)
            result[name] = {
                key: torch.zeros_like(value) if value.grad is None else value.grad for key, value in parameters.items()
            }
            for key, value in parameters.items():
                value.grad = before[key]
        return result

    def encoder_grads(self) -> dict[str, dict[str, Tensor]]:
        """Return the encoders' current parameter gradients by modality and parameter name."""
        return {
            name: {key: value.grad for key, value in parameters.items() if value.grad is not None}
            for name, parameters in self._encoders.items()
        }

    def set_encoder_grads(self, gradients: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the encoders' parameter gradients."""
        for name, values in gradients.items():
            for key, value in values.items():
                self._encoders[name][key].grad = value

    def descend(self, forward: Forward, loss: Tensor) -> None:
        """Train on one loss of a forward pass, nothing modulated: two-phase backward and optimiser step."""
        self.encoder_backward(forward, self.feature_gradients(forward, loss))
        self.update(loss)

    def update(self, loss: Tensor) -> None:
        """Clip, take the optimiser step, clear all gradients, and record the loss."""
        if self.run.protocol.clip_norm is not None:
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self.run.protocol.clip_norm)
        self.step_optimizer()
        for parameter in self._parameters:
            parameter.grad = None
        self.loss_sum = self.loss_sum + loss.detach()
        self.loss_count += 1
        self.steps += 1

    def step_optimizer(self) -> None:
        """Take the optimiser step on the current gradients."""
        self.optimizer.step()

    def fork(self, model: MultimodalModel, parameters: Mapping[str, nn.Parameter], axis: str) -> Context:
        """Return a context that trains another model with a fresh optimiser and random streams of its own.

        Its passes are counted, its gradients are not part of the diagnostics. It keeps this epoch's learning rate:
        `train_aside` follows the schedule, and who trains in a fork across epochs sets the rate in each.
        """
        if self.run.counter is not None:
            self.run.counter.watch(model.encoders)
        side = Context(self.run, model, parameters, axis=f"{self._axis}/{axis}")
        side.start(self.epoch)
        side.set_lr(self.lr)
        return side

    def train_aside(
        self,
        model: MultimodalModel,
        parameters: Mapping[str, nn.Parameter],
        axis: str,
        step: Callable[[Batch, Context], object],
        *,
        epochs: Iterable[float],
        part: Part | None = None,
        indices: Tensor | None = None,
    ) -> Context:
        """Train another model in a fork and return the fork's context; of this run only the pass counts move.

        One pass over the training part, another part or some samples for each of `epochs`: the epoch of the run, or
        the point between two, whose learning rate the pass has. `range(ctx.epoch, ctx.epoch + n)` looks n epochs
        ahead, `range(ctx.epochs)` is a run of its own.
        """
        side, protocol = self.fork(model, parameters, axis), self.run.protocol
        with seeding.isolated():
            # Random layers draw from the process's stream, which belongs to the main model.
            torch.manual_seed(side.generator.initial_seed())
            for epoch in epochs:
                side.set_lr(learning_rate(protocol.optimizer.lr, protocol.schedule, epoch, protocol.epochs))
                for batch in side.batches(part, indices=indices):
                    step(batch, side)
        return side


C = TypeVar("C", bound=Context)


def begin(
    method: Method,
    model: MultimodalModel,
    protocol: Protocol,
    seed: int,
    train: Part | None,
    val: Part | None,
    *,
    diagnostics: Diagnostics | None = None,
    counter: PassCounter | None = None,
    autocast: Autocast = contextlib.nullcontext,
    kind: type[C] = Context,  # type: ignore[assignment]
) -> C:
    """Return the context of a new run; parameters that the method does not train are frozen."""
    parameters = method.parameters(model)
    trained = {id(p) for p in (*parameters.values(), *model.parameters_under("discriminator.").values())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    plan = Plan(
        protocol.epochs,
        0 if train is None else len(train),
        0 if val is None else len(val),
        method.task.modalities,
        protocol.batch_size,
    )
    run = Run(method.task, plan, train, val, seed, protocol, autocast, counter)
    return kind(run, model, parameters, diagnostics=diagnostics)
