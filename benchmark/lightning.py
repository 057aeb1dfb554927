"""Any registered method inside your own `pytorch_lightning.Trainer`."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from benchmark.context import Context, begin
from benchmark.data import Batch, Part
from benchmark.diagnostics import Diagnostics
from benchmark.errors import UsageError
from benchmark.evaluation import accuracy
from benchmark.model import MultimodalModel
from benchmark.protocol import Protocol, validated
from benchmark.registry import FUSIONS, METHODS
from benchmark.task import Task
from benchmark.training import initialised


class _TrainerContext(Context):
    """Lets the Trainer take the optimiser step, so that its step count, callbacks and loggers see it."""

    module: BalancedModule

    def step_optimizer(self) -> None:
        strategy = self.module.trainer.strategy
        if strategy.optimizers[0] is not self.optimizer:
            strategy.optimizers = [self.optimizer]
        stepping = self.module.optimizers()
        assert not isinstance(stepping, list)
        stepping.step()


class _Epochs:
    """The method's own batches, drawn anew in every epoch.

    The Trainer prefetches one item, on resuming even before the epoch begins. It is therefore given tokens, the first
    of which draws nothing; each stands for the batch at the head of the module's queue.
    """

    def __init__(self, module: BalancedModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[_Token]:
        yield _TOKEN
        self.module.enter_epoch()
        stream = iter(self.module.method.batches(self.module.context))
        queue = self.module.queue
        queue.clear()
        queue.append(next(stream))
        for batch in stream:
            queue.append(batch)
            yield _TOKEN


class _Token:
    """Stands for a batch."""


_TOKEN = _Token()


class _Validation:
    """The validation part's batches, none where there is no such part."""

    def __init__(self, module: BalancedModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Batch]:
        part = self.module.val_part
        return iter(()) if part is None else part.batches(self.module.protocol.batch_size)


class BalancedModule(LightningModule):
    """A LightningModule that trains your encoders with a registered method.

    `encoders` map a modality's batch to features `(B, d_m)` and state d_m as `width`; they are copied with their
    weights. Give the training and validation data as parts (`Part.from_tensors`) and call `trainer.fit(module)`; or,
    for methods that need no look at the data beyond the batch, pass the Trainer your own DataLoader of `(inputs by
    modality, labels)`; Lightning reads a plain list as several loaders. Logs `train_loss`, `balance_factor` and
    `val_accuracy`. `domains` names the source domains that the part's domain labels count; methods then learn to hide
    them. Raises UsageError for an unknown method, a wrong option or a task that the method refuses.
    """

    def __init__(
        self,
        method: str,
        encoders: Mapping[str, nn.Module],
        classes: int,
        protocol: Protocol,
        *,
        train: Part | None = None,
        val: Part | None = None,
        fusion: str = "concat",
        domains: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        without = [name for name, encoder in encoders.items() if not hasattr(encoder, "width")]
        if without:
            raise UsageError(f"Encoder {without[0]!r} has no `width`. Set it to its number of features.")
        kind = METHODS.load(method)
        task = Task(
            shapes=train.shapes if train is not None else dict.fromkeys(encoders, ()),
            classes=classes,
            epochs=protocol.epochs,
            backbone=lambda name, _shape: copy.deepcopy(encoders[name]),
            fusion=FUSIONS.load(fusion),
            domains=tuple(domains),
            hidden=protocol.hidden,
        )
        chosen = validated(kind.Options, dict(options or {}), f"Options of method {method!r}")
        reason = kind.refuses(chosen, task)
        if reason:
            raise UsageError(f"Method {method!r} cannot run on these encoders: {reason}.")
        self.method = kind(chosen, task)
        self.model: MultimodalModel = initialised(self.method, seed)
        self.protocol, self.seed = protocol, seed
        self.train_part, self.val_part = train, val
        self.diagnostics: Diagnostics
        self.context: _TrainerContext
        self.queue: deque[Batch] = deque()
        self._entered: int | None = None
        self._restored: dict[str, Any] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the context over the model on its device, and hand its optimiser to the Trainer."""
        if self.trainer.max_epochs != self.protocol.epochs:
            raise UsageError(
                f"The Trainer runs {self.trainer.max_epochs} epochs, the protocol {self.protocol.epochs}. "
                "Make them equal: methods plan their phases over the protocol's epochs."
            )
        if self.trainer.world_size > 1:
            raise UsageError(f"The Trainer uses {self.trainer.world_size} processes, methods see one. Use devices=1.")
        if str(self.trainer.precision) != self.protocol.precision:
            raise UsageError(
                f"The Trainer computes in {self.trainer.precision}, the protocol in {self.protocol.precision}. "
                "Make them equal."
            )
        train, val = self.train_part, self.val_part
        self.diagnostics = Diagnostics(self.method.task.modalities, self.device)
        self.context = begin(
            self.method,
            self.model,
            self.protocol,
            self.seed,
            None if train is None else train.to(self.device),
            None if val is None else val.to(self.device),
            diagnostics=self.diagnostics,
            kind=_TrainerContext,
        )
        self.context.module = self
        if self._restored:
            named = dict(self.model.named_parameters())
            self.context.reset_optimizer({name: named[name] for name in self._restored["trained"]})
            self.diagnostics.load_state_dict(self._restored["diagnostics"])
            self.context.steps = self._restored["steps"]
        return self.context.optimizer

    def enter_epoch(self) -> None:
        """Start the Trainer's current epoch once, whichever of the loader and the hook comes first."""
        epoch = self.trainer.current_epoch
        if self._entered != epoch:
            self._entered = epoch
            self.model.train()
            self.context.enter(self.method, epoch)

    def train_dataloader(self) -> _Epochs:
        """Return the method's own batches of the training part."""
        if self.train_part is None:
            raise UsageError("No training data. Pass `train=Part.from_tensors(...)` or give the Trainer a loader.")
        return _Epochs(self)

    def val_dataloader(self) -> _Validation:
        """Return the validation part's batches in sample order; none without one."""
        return _Validation(self)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Batch:
        """Accept tokens for our batches, and `(inputs by modality, labels)` of other loaders."""
        if isinstance(batch, _Token):
            return self.queue.popleft()
        if isinstance(batch, Batch):
            return batch if batch.labels.device == device else batch.to(device)
        inputs, labels = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return Batch(dict(inputs), labels, torch.arange(len(labels), device=device))

    def on_train_epoch_start(self) -> None:
        """Start the method's epoch."""
        self.enter_epoch()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Let the method take its step, and end it."""
        self.method.step(batch, self.context)
        self.method.end_step(self.context)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the method's epoch after its last step, before the Trainer validates."""
        if self.trainer.is_last_batch:
            self.method.end_epoch(self.context)
            self.log("train_loss", self.context.mean_loss(), batch_size=1)
            self.log("balance_factor", self.diagnostics.end_epoch()["balance_factor"], batch_size=1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the accuracy of the method's prediction."""
        logits = self.method.predict(self.model, batch).logits
        self.log("val_accuracy", accuracy(logits, batch.labels), batch_size=len(batch))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the method's fused logits `(B, C)` for a batch of inputs."""
        labels = torch.zeros(len(next(iter(inputs.values()))), dtype=torch.long, device=self.device)
        return self.method.predict(self.model, Batch(dict(inputs), labels, torch.arange(len(labels)))).logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the method's state beside the weights."""
        checkpoint["equipoise"] = {
            "method": self.method.state_dict(),
            "trained": list(self.context.trained),
            "diagnostics": self.diagnostics.state_dict(),
            "steps": self.context.steps,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the method's state; the optimiser's parameters follow when the Trainer asks for it."""
        self._restored = checkpoint["equipoise"]
        self.method.load_state_dict(self._restored["method"])
