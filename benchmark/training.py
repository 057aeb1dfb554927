"""`fit`: the only training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric

from benchmark import seeding
from benchmark.context import Context, Run
from benchmark.diagnostics import Diagnostics, PassCounter
from benchmark.errors import CellError
from benchmark.evaluation import evaluate
from benchmark.method import Method, Passes, Plan
from benchmark.model import MultimodalModel
from benchmark.protocol import Protocol, Schedule

if TYPE_CHECKING:
    from benchmark.data import Part

CHECKPOINT_SECONDS = 60.0
"""A cell shorter than this is cheaper to repeat than to checkpoint."""


@dataclass
class Fit:
    """A finished run: trained model, one record per epoch, counted passes, steps, seconds of training and in all."""

    model: MultimodalModel
    epochs: list[dict[str, Any]] = field(default_factory=list)
    passes: Passes = Passes()
    steps: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0


def learning_rate(base: float, schedule: Schedule, epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch (from 0); cosine falls to 0 after the last one."""
    if schedule.name == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if schedule.name == "step":
        return base * schedule.gamma ** (epoch // schedule.every)
    return base


def initialised(method: Method, seed: int) -> MultimodalModel:
    """Build the method's model from the seed's initialisation stream; the caller's random state is untouched."""
    with seeding.isolated():
        torch.manual_seed(seeding.derive(seed, "initialisation"))
        return method.build()


def fit(
    method: Method,
    parts: Mapping[str, Part],
    protocol: Protocol,
    seed: int,
    *,
    fabric: Fabric | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Fit:
    """Train `method` on the parts "train" and "val", and record validation and test metrics after every epoch.

    With a `checkpoint` path the run is saved at epoch ends, and continued from there if the file exists: the metrics
    of an interrupted run equal those of an undisturbed one bit for bit. Raises CellError on a non-finite loss.
    """
    fabric = fabric or Fabric(accelerator="auto", devices=1, precision=protocol.precision)
    with seeding.isolated():
        return _Loop(method, parts, protocol, seed, fabric, checkpoint, checkpoint_seconds).run(on_epoch)


class _Loop:
    """The state of one run; its `state` is what a checkpoint holds."""

    def __init__(
        self,
        method: Method,
        parts: Mapping[str, Part],
        protocol: Protocol,
        seed: int,
        fabric: Fabric,
        checkpoint: Path | None,
        checkpoint_seconds: float,
    ) -> None:
        self.method, self.parts, self.protocol, self.seed, self.fabric = method, parts, protocol, seed, fabric
        self.checkpoint, self.checkpoint_seconds = checkpoint, checkpoint_seconds
        modalities = method.task.modalities
        model = initialised(method, seed)
        model = model.to(fabric.device).train()
        self.counter = PassCounter(modalities)
        self.counter.watch(model.encoders)
        self.diagnostics = Diagnostics(modalities, fabric.device)
        train, val = parts["train"], parts["val"]
        mixed = protocol.precision == "bf16-mixed"
        run = Run(
            task=method.task,
            plan=Plan(protocol.epochs, len(train), len(val), modalities, protocol.batch_size),
            train=train,
            val=val,
            seed=seed,
            optimizer=protocol.optimizer,
            clip_norm=protocol.clip_norm,
            augment=protocol.augment,
            autocast=fabric.autocast if mixed else contextlib.nullcontext,
            counter=self.counter,
        )
        parameters = method.parameters(model)
        trained = {id(parameter) for parameter in parameters.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.ctx = Context(run, model, parameters, diagnostics=self.diagnostics)
        self.result = Fit(model)

    def run(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> Fit:
        self._resume()
        started = saved = time.perf_counter() - self.result.seconds
        for epoch in range(len(self.result.epochs), self.protocol.epochs):
            record = self._epoch(epoch)
            self.result.epochs.append(record)
            self.result.seconds = time.perf_counter() - started
            if on_epoch is not None:
                on_epoch(record)
            if self.checkpoint is not None and time.perf_counter() - saved >= self.checkpoint_seconds:
                self._save(self.checkpoint)
                saved = time.perf_counter()
        self.result.steps = self.ctx.steps
        self.result.passes = self.counter.passes(len(self.parts["train"]), self.protocol.epochs)
        return self.result

    def _epoch(self, epoch: int) -> dict[str, Any]:
        ctx, method, protocol = self.ctx, self.method, self.protocol
        torch.manual_seed(seeding.derive(self.seed, "layers", epoch))
        started = time.perf_counter()
        ctx.start(epoch)
        ctx.set_lr(learning_rate(protocol.optimizer.lr, protocol.schedule, epoch, protocol.epochs))
        method.start_epoch(ctx)
        for batch in method.batches(ctx):
            method.step(batch, ctx)
        loss = ctx.mean_loss()
        if not math.isfinite(loss):
            raise CellError(
                f"Training loss became {loss} in epoch {epoch + 1} of {protocol.epochs} (learning rate {ctx.lr:g}). "
                "Lower the learning rate or set the protocol's clip_norm."
            )
        method.end_epoch(ctx)
        self.result.training_seconds += time.perf_counter() - started
        self.counter.paused = True
        try:
            metrics = {
                name: evaluate(method, ctx.model, self.parts[name], protocol.batch_size) for name in ("val", "test")
            }
        finally:
            self.counter.paused = False
        diagnostics = {**self.diagnostics.end_epoch(), "notes": ctx.notes()}
        return {"epoch": epoch, "lr": ctx.lr, "loss": loss, **metrics, **diagnostics}

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "model": self.ctx.model.state_dict(),
            "trained": list(self.ctx.trained),
            "optimizer": self.ctx.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "diagnostics": self.diagnostics.state_dict(),
            "counter": self.counter.state_dict(),
            "steps": self.ctx.steps,
            "epochs": self.result.epochs,
            "seconds": self.result.seconds,
        }
        self.fabric.save(partial, state)
        partial.replace(path)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = self.fabric.load(self.checkpoint, weights_only=True)
        self.ctx.model.load_state_dict(state["model"])
        named = dict(self.ctx.model.named_parameters())
        self.ctx.reset_optimizer({name: named[name] for name in state["trained"]})
        self.ctx.optimizer.load_state_dict(state["optimizer"])
        self.ctx.steps = state["steps"]
        self.method.load_state_dict(state["method"])
        self.diagnostics.load_state_dict(state["diagnostics"])
        self.counter.load_state_dict(state["counter"])
        self.result.epochs = state["epochs"]
        self.result.seconds = state["seconds"]
