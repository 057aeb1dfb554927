"""CGGM: encoders scaled, and the fused head turned, by how fast a classifier on each modality improves.

Guo, Jin, Chen, Zhao, NeurIPS 2024, as in its official code. A modality's classifier sees its detached features `(B,
d_m)`. The official one is a transformer over a sequence of tokens. For a vector of features it is what the fused head
is: one linear layer, compared with its slice of the head, or one with a hidden layer of the same width, whose output
layer is compared with the head's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.gradients import cosine
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading, total
from benchmark.model import MultimodalModel, output_layer
from benchmark.task import Task

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

Form = Literal["released", "bounded"]


def accuracies(logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return each modality's share of correct predictions `(M,)`, float64, from logits `(B, C)`."""
    correct = torch.stack([values.argmax(1) for values in logits.values()]) == labels
    return correct.double().mean(1)


def factors(previous: Tensor, current: Tensor, form: Form = "released") -> Tensor:
    """Return B = (S - D) / S `(M,)`: D is the rise from `previous` to `current` scores `(M,)`, S its sum + 1e-8.

    Their sum is M - 1, or M where no score moves. Where rises cancel, B reaches 1e7, of either sign; "bounded" takes a
    fall for no rise, which keeps B in [0, 1].
    """
    rise = current - previous
    if form == "bounded":
        rise = rise.clamp_min(0)
    whole = rise.sum() + 1e-8
    return (whole - rise) / whole


def direction_loss(fused: Mapping[str, Tensor], classifiers: Mapping[str, Tensor], weights: Tensor) -> Tensor:
    """Return the mean over modalities of |B_m| - B_m cos(fused_m, classifier_m), never negative.

    `fused[m]` and `classifiers[m]` `(C, d_m)` are output layers or their gradients, `weights` B `(M,)`.
    """
    cosines = torch.stack([cosine(fused[m].flatten(), classifiers[m].flatten()) for m in fused])
    return (weights.abs() - weights * cosines).mean()


class CGGM(Method):
    """Scales encoder gradients against their classifiers' progress and pulls the fused head to the slow ones."""

    info = MethodInfo(
        title="CGGM",
        paper="Guo, Jin, Chen, Zhao: Classifier-guided Gradient Modulation for Enhanced Multimodal Learning",
        venue="NeurIPS 2024",
        arxiv="2411.01409",
        origin="zrguo/CGGM @ 21e428cb7e666b8640453557380bb6414b7d246f",
        licence="MIT",
        category="both",
        interventions=frozenset({Intervention.PARAMETER_GRADIENT, Intervention.LOSS}),
        changes=frozenset({"encoders", "fusion", "head"}),
    )

    # Configurations in the repository.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "food101": {"rho": 1.3, "direction_weight": 0.05, "clip": 0.8, "classifier_lr": 0.5},
        "cmu_mosi": {"rho": 1.3, "direction_weight": 0.2, "clip": 0.8, "classifier_lr": 0.5},
        "iemocap": {"rho": 1.3, "direction_weight": 0.2, "clip": 0.8, "classifier_lr": 0.5},
        "brats": {"rho": 1.0, "direction_weight": 0.1, "clip": None, "classifier_lr": 0.6},
    }

    class Options(MethodOptions):
        """Strengths, clipping, the classifiers' learning rate, and readings."""

        rho: float = option(1.3, "Factor on every B. Official: 1.3 (Food-101, CMU-MOSI, IEMOCAP), 1.0 (BraTS).", gt=0)
        direction_weight: float = option(
            0.2,
            "lambda: weight of the direction loss. Official: 0.2 (CMU-MOSI, IEMOCAP), 0.1 (BraTS), 0.05 (Food-101).",
            ge=0,
        )
        clip: float | None = option(
            0.8,
            "Norm to which the gradient of encoders, fusion and head together is clipped. Official: 0.8, none for "
            "BraTS. Without it a step with a B of 1e7 ends the run.",
            gt=0,
        )
        classifier_lr: float = option(
            0.5, "The classifiers' learning rate as a share of the run's. Official: 5e-4 of 1e-3, BraTS 0.6.", gt=0
        )
        form: Form = reading(
            "released",
            "`released`: B is unbounded, and an encoder climbs the loss where B is negative. `bounded` (ours): a "
            "falling score counts as an unmoved one. Default `released`: the code, which relies on clipping.",
        )
        interval: Literal["step", "epoch"] = reading(
            "step",
            "Scores are accuracies of consecutive, different mini-batches (`step`, the code), or means of consecutive "
            "epochs (`epoch`), whose B holds for the next epoch; the first one has none. The paper's t allows both. "
            "Default `step`: the code.",
        )
        direction: Literal["weights", "gradients"] = reading(
            "weights",
            "Cosine of the output layers' `weights` (code; the author calls it a surrogate), or of the losses' "
            "`gradients` with respect to them (paper), differentiated once more. Default `weights`: it is what "
            "was run.",
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.scores = torch.zeros(len(task.modalities), dtype=torch.float64)
        self.factors: Tensor | None = None
        self.pull: Tensor | None = None
        """Gradient `(C, D)` of the last step's direction loss in the fused head's weight, applied in the next step."""
        self.hits: Tensor | float = 0.0
        """Correct predictions `(M,)` of the epoch so far, among the `seen` samples."""
        self.seen = 0
        self.side: Context | None = None
        self._saved_optimizer: dict[str, Any] | None = None

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return why a linear fused head has no slice of a classifier's shape."""
        if task.hidden is None:
            with torch.device("meta"):
                found = task.fusion(task.widths).part_widths
            if found != task.widths:
                return (
                    f"compares each classifier with its slice of the fused head: the features {task.widths} differ "
                    f"from the slices {found} of fusion {task.fusion.__name__.lower()}; use concat, or encoders of one "
                    "width"
                )
        return super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build the model with a classifier per modality, made as the fused head is."""
        model = self.task.build_model()
        heads = {m: self.task.build_head(width) for m, width in model.widths.items()}
        model.unimodal_heads = nn.ModuleDict(heads)
        return model

    def start_epoch(self, ctx: Context) -> None:
        """Give the classifiers an optimiser of their own, once, and this epoch's learning rate."""
        if self.side is None:
            heads = {f"unimodal_heads.{name}": p for name, p in ctx.model.unimodal_heads.named_parameters()}
            self.side = ctx.fork(ctx.model, heads, "classifiers")
            if self._saved_optimizer is not None:
                self.side.optimizer.load_state_dict(self._saved_optimizer)
        self.side.start(ctx.epoch)
        self.side.set_lr(self.options.classifier_lr * ctx.lr)
        self.hits, self.seen = 0.0, 0

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch: the classifiers on detached features, then the model, scaled, pulled and clipped."""
        forward = ctx.forward(batch)
        loss = self.losses(forward, batch, ctx)["fused"]
        pull = self.pull
        # Clears all gradients, so it comes before the model's own backward.
        self._train_classifiers(forward, loss, batch, ctx)
        gradients = ctx.feature_gradients(forward, loss)
        weight = ctx.model.output.weight
        if pull is not None and weight.grad is not None:
            weight.grad.add_(pull.to(weight), alpha=self.options.direction_weight)
        if self.factors is not None:
            # An encoder's parameter gradients are linear in its feature gradient: one product scales them all.
            scales = (self.options.rho * self.factors).to(loss).unbind()
            gradients = {m: scale * gradients[m] for m, scale in zip(ctx.model.modalities, scales, strict=True)}
        ctx.encoder_backward(forward, gradients)
        if self.options.clip is not None:
            trained = [parameter for group in ctx.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.options.clip)
        ctx.update(loss)

    def _train_classifiers(self, forward: Forward, loss: Tensor, batch: Batch, ctx: Context) -> None:
        """Update the scores, B and the pull on the fused head, then the classifiers."""
        assert self.side is not None, "start_epoch comes first"
        logits = ctx.model.unimodal_logits({m: values.detach() for m, values in forward.features.items()})
        alone = {m: functional.cross_entropy(values, batch.labels) for m, values in logits.items()}
        scores = accuracies(logits, batch.labels)
        if self.options.interval == "step":
            self._compare(scores)
        else:
            self.hits = self.hits + len(batch) * scores
            self.seen += len(batch)
        if self.factors is not None and self.options.direction_weight > 0:
            self.pull = self._pull(loss, alone, self.factors, ctx.model)
        together = total(alone)
        together.backward()
        self.side.update(together)

    def _compare(self, scores: Tensor) -> None:
        self.factors = factors(self.scores.to(scores), scores, self.options.form)
        self.scores = scores

    def _pull(self, loss: Tensor, alone: Mapping[str, Tensor], weights: Tensor, model: MultimodalModel) -> Tensor:
        """Return the direction loss's gradient `(C, D)` in the fused head's weight; classifiers stay fixed."""
        weight: Tensor = model.output.weight
        own: dict[str, Tensor] = {m: output_layer(head).weight for m, head in model.unimodal_heads.items()}
        fused: Tensor = weight
        if self.options.direction == "gradients":
            fused = torch.autograd.grad(loss, weight, create_graph=True)[0]
            own = {m: torch.autograd.grad(alone[m], value, retain_graph=True)[0] for m, value in own.items()}
        slices = dict.fromkeys(own, fused)
        if self.task.hidden is None:
            slices = {m: fused[:, columns] for m, columns in model.fusion.slices.items()}
        direction = direction_loss(slices, {m: own[m].detach() for m in slices}, weights.to(loss))
        # The double backward runs through the fused loss's graph, whose own backward is still to come.
        return torch.autograd.grad(direction, weight, retain_graph=True)[0]

    def end_epoch(self, ctx: Context) -> None:
        """Compare this epoch's mean scores with the last one's, with `interval=epoch`."""
        if self.options.interval == "epoch" and isinstance(self.hits, Tensor):
            self._compare(self.hits / self.seen)

    def state_dict(self) -> dict[str, Any]:
        """Return scores, B, the pull on the fused head and the classifiers' optimiser."""
        return {
            "scores": self.scores.tolist(),
            "factors": None if self.factors is None else self.factors.tolist(),
            "pull": self.pull,
            "optimizer": self._saved_optimizer if self.side is None else self.side.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scores = torch.tensor(state["scores"], dtype=torch.float64)
        self.factors = None if state["factors"] is None else torch.tensor(state["factors"], dtype=torch.float64)
        self.pull = state["pull"]
        self.side, self._saved_optimizer = None, state["optimizer"]
