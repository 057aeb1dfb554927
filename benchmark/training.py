"""`fit`: the only training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor

from benchmark import seeding
from benchmark.context import Context, begin
from benchmark.diagnostics import Diagnostics, PassCounter
from benchmark.errors import CellError
from benchmark.evaluation import evaluate, evaluate_finally
from benchmark.features import recorded_features
from benchmark.method import Method, Passes
from benchmark.model import MultimodalModel
from benchmark.protocol import Protocol
from benchmark.scores import select_epoch
from benchmark.version import RESULT_SCHEMA

if TYPE_CHECKING:
    from benchmark.data import Part

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
"""A cell shorter than this is cheaper to repeat than to checkpoint."""


@dataclass
class Fit:
    """A finished run: trained model, one record per epoch, counted passes, steps, seconds of training and in all.

    `final` holds what `evaluate_finally` finds on the test part with the weights of the epoch that "best_val" selects
    and with those of the "last", and as `features` what the protocol has recorded; `model` has the last ones.
    """

    model: MultimodalModel
    epochs: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, dict[str, Any]] = field(default_factory=dict)
    passes: Passes = Passes()
    steps: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0


def cpu_or_cuda(precision: str) -> Fabric:
    """Return a Fabric on the first CUDA device, or on the CPU: energies need float64, which no other device has."""
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    # Named, as Lightning would take a cell in an allocation of SLURM for one of several processes that train together.
    plugins = [LightningEnvironment()]
    return Fabric(accelerator=accelerator, devices=1, precision=precision, plugins=plugins)  # type: ignore[arg-type]


def initialised(method: Method, seed: int) -> MultimodalModel:
    """Build the method's model from the seed's initialisation stream; the caller's random state is untouched."""
    with seeding.isolated():
        torch.manual_seed(seeding.derive(seed, "initialisation"))
        model = method.build()
        if method.adversarial:
            model.discriminator = method.task.build_discriminator(model.fusion.width)
        return model


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
    clock: Callable[[], float] = time.perf_counter,
) -> Fit:
    """Train `method` on the parts "train" and "val", and record validation and test metrics after every epoch.

    With a `checkpoint` path the run is saved at epoch ends, and continued from there if the file exists: the metrics
    of an interrupted run equal those of an undisturbed one bit for bit. `clock` measures the seconds of training.
    Raises CellError on a non-finite loss.
    """
    fabric = fabric or cpu_or_cuda(protocol.precision)
    with seeding.isolated():
        return _Loop(method, parts, protocol, seed, fabric, checkpoint, checkpoint_seconds, clock).run(on_epoch)


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
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.method, self.protocol, self.fabric = method, protocol, fabric
        self.checkpoint, self.checkpoint_seconds = checkpoint, checkpoint_seconds
        modalities = method.task.modalities
        model = initialised(method, seed).to(fabric.device).train()
        self.parts = {name: part.to(fabric.device) for name, part in parts.items()}
        self.counter = PassCounter(modalities)
        for part in model.modules():
            if isinstance(part, MultimodalModel):  # a method's model may hold another one
                self.counter.watch(part.encoders)
        self.diagnostics = Diagnostics(modalities, fabric.device)
        self.ctx = begin(
            method,
            model,
            protocol,
            seed,
            self.parts["train"],
            self.parts["val"],
            diagnostics=self.diagnostics,
            counter=self.counter,
            autocast=fabric.autocast if protocol.precision == "bf16-mixed" else contextlib.nullcontext,
            kind=Context,
        )
        self.result = Fit(model)
        self.selected: dict[str, Tensor] = {}

    def run(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> Fit:
        self._resume()
        saved = time.perf_counter()
        started = saved - self.result.seconds
        for epoch in range(len(self.result.epochs), self.protocol.epochs):
            record = self._epoch(epoch)
            self.result.epochs.append(record)
            if record is select_epoch(self.result.epochs, "best_val"):
                self.selected = self._weights()
            self.result.seconds = time.perf_counter() - started
            if on_epoch is not None:
                on_epoch(record)
            if self.checkpoint is not None and time.perf_counter() - saved >= self.checkpoint_seconds:
                self._save(self.checkpoint)
                saved = time.perf_counter()
        self.result.final = self._final()
        self.result.seconds = time.perf_counter() - started
        self.result.steps = self.ctx.steps
        self.result.passes = self.counter.passes(len(self.parts["train"]), self.protocol.epochs)
        return self.result

    def _epoch(self, epoch: int) -> dict[str, Any]:
        ctx, method, protocol = self.ctx, self.method, self.protocol
        started = self.clock()
        ctx.enter(method, epoch)
        for batch in method.batches(ctx):
            method.step(batch, ctx)
            method.end_step(ctx)
        loss = ctx.mean_loss()
        if not math.isfinite(loss):
            raise CellError(
                f"Training loss became {loss} in epoch {epoch + 1} of {protocol.epochs} (learning rate {ctx.lr:g}). "
                "Lower the learning rate or set the protocol's clip_norm."
            )
        method.end_epoch(ctx)
        self.result.training_seconds += self.clock() - started
        with self.counter.pause():
            metrics = {
                name: evaluate(method, ctx.model, self.parts[name], protocol.batch_size) for name in ("val", "test")
            }
        diagnostics = {**self.diagnostics.end_epoch(), "notes": ctx.notes()}
        return {"epoch": epoch, "lr": ctx.lr, "loss": loss, **metrics, **diagnostics}

    def _weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's parameters and buffers."""
        return {name: value.clone() for name, value in self.ctx.model.state_dict().items()}

    def _final(self) -> dict[str, dict[str, Any]]:
        """Evaluate the selected epoch's weights and the last ones, once where they are the same; leave the last."""

        def found() -> dict[str, Any]:
            result = evaluate_finally(self.method, model, self.parts["test"], self.protocol.batch_size)
            if self.protocol.features:
                sources, count = self.method.task.domains, self.protocol.features
                result["features"] = recorded_features(model, self.parts, sources, count, self.protocol.batch_size)
            return result

        model, epochs = self.ctx.model, self.result.epochs
        with self.counter.pause():
            if select_epoch(epochs, "best_val") is epochs[-1]:
                selected = last = found()
            else:
                weights = self._weights()
                model.load_state_dict(self.selected)
                selected = found()
                model.load_state_dict(weights)
                last = found()
        return {"best_val": selected, "last": last}

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "schema": RESULT_SCHEMA,
            "model": self.ctx.model.state_dict(),
            "selected": self.selected,
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

    def _saved(self) -> dict[str, Any] | None:
        """Return the checkpoint's content, None without one.

        One that is damaged, or of another version, is dropped and the run starts anew.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        try:
            # torch does not look at the checksums of weights: a block that never reached the disk would be zeros.
            with zipfile.ZipFile(self.checkpoint) as parts:
                damaged = parts.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(damaged)
            state = dict(self.fabric.load(self.checkpoint, weights_only=True))
            problem = "" if state.get("schema") == RESULT_SCHEMA else "another version wrote it"
        except Exception as error:  # noqa: BLE001 - damaged bytes raise whatever they happen to spell
            problem = type(error).__name__
        if problem:
            log.warning("%s cannot be read (%s): the run starts anew.", self.checkpoint, problem)
            self.checkpoint.unlink()
            return None
        return state

    def _resume(self) -> None:
        state = self._saved()
        if state is None:
            return
        self.ctx.model.load_state_dict(state["model"])
        self.selected = state["selected"]
        named = dict(self.ctx.model.named_parameters())
        self.ctx.reset_optimizer({name: named[name] for name in state["trained"]})
        self.ctx.optimizer.load_state_dict(state["optimizer"])
        self.ctx.steps = state["steps"]
        self.method.load_state_dict(state["method"])
        self.diagnostics.load_state_dict(state["diagnostics"])
        self.counter.load_state_dict(state["counter"])
        self.result.epochs = state["epochs"]
        self.result.seconds = state["seconds"]
