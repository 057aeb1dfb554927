"""GradNorm: task weights learnt so that weighted gradient norms are equal, tilted towards tasks that train slowly.

Chen, Badrinarayanan, Lee, Rabinovich: "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
Multitask Networks", ICML 2018. Vectors `(T,)` hold one number per task.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from benchmark.gradients import flatten
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading, total, unimodal_losses
from benchmark.model import MultimodalModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

Parametrisation = Literal["raw", "softmax"]

SMALLEST_WEIGHT = 1e-3
"""Nothing in the method keeps a raw weight positive; smaller ones are raised to this before they are renormalised."""


def relative_rates(losses: Tensor, initial: Tensor) -> Tensor:
    """Return r = (L_i / L_i(0)) / their mean `(T,)`: above 1 trains more slowly; 1 where the mean is 0."""
    ratios = losses / initial
    return (ratios / ratios.mean()).nan_to_num(nan=1.0)


def targets(norms: Tensor, weights: Tensor, rates: Tensor, alpha: float) -> Tensor:
    """Return the norm (mean of w n) r^alpha `(T,)` that each weighted gradient w n should have; a constant."""
    return (weights * norms).mean() * rates**alpha


def weight_gradient(norms: Tensor, weights: Tensor, rates: Tensor, alpha: float) -> Tensor:
    """Return the gradient `(T,)` of sum |w n - target| for the weights: sign(w n - target) n, targets constant."""
    return (weights * norms - targets(norms, weights, rates, alpha)).sign() * norms


def softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient `(T,)` for s from that for the weights, where w = T softmax(s)."""
    return weights * (gradient - (weights * gradient).mean())


def renormalised(weights: Tensor) -> Tensor:
    """Return the weights `(T,)`, raised to at least 1e-3, rescaled to the sum T."""
    positive = weights.clamp_min(SMALLEST_WEIGHT)
    return len(weights) * positive / positive.sum()


class GradNorm(Method):
    """Learns one weight per modality, or per loss, by gradient norms at the features.

    Only norms change, never directions. The step's gradients take the weights from before the step's update.
    """

    info = MethodInfo(
        title="GradNorm",
        paper="Chen, Badrinarayanan, Lee, Rabinovich: GradNorm: Gradient Normalization for Adaptive Loss Balancing in "
        "Deep Multitask Networks",
        venue="ICML 2018",
        arxiv="1711.02257",
        origin="not found; compared with median-research-group/LibMTL @ 4336804847eaa5e0b924b743d76beec7ac3fdc97",
        licence="no code published",
        category="conflict",
        interventions=frozenset({Intervention.FEATURE_GRADIENT, Intervention.LOSS}),
        changes=frozenset({"encoders", "fusion", "head"}),
    )
    noop: ClassVar[Mapping[str, object]] = {"weight_lr": 0.0}

    class Options(MethodOptions):
        """Asymmetry, step size of the weights, and what the tasks are."""

        alpha: float = option(
            1.5,
            "Asymmetry: how much a slow task is favoured, 0 makes all norms equal. 1.5 in LibMTL, 0.12 for a "
            "toy problem; the authors gave none for multimodal data.",
            ge=0,
        )
        weight_lr: float = option(0.025, "Learning rate of the weights' own Adam. LibMTL has the network's.", ge=0)
        tasks: Literal["modality", "losses"] = reading(
            "modality",
            "The paper has several losses on a shared tensor; one loss on separate encoders needs a definition. "
            "`modality`: tasks are modalities, the weight scales the feature gradient that enters the encoder, and the "
            "speed is read from the modality's own logits; fusion and head keep joint training's gradient. `losses`: "
            "tasks are the fused and the unimodal losses, on separate heads, weighted as a whole; norms are taken at "
            "the concatenated features. Default `modality`: RGM compares methods that act on modality gradients.",
        )
        parametrisation: Parametrisation = reading(
            "raw",
            "`raw`: the weights are stepped, kept positive and renormalised to the sum T. `softmax`: T softmax(s) with "
            "learnt s (LibMTL), whose gradient vanishes with the weight. Default `raw`: all implementations read but "
            "LibMTL; and a weight that has collapsed comes back.",
        )
        initial: Literal["epoch", "batch", "classes"] = reading(
            "epoch",
            "L(0) of the training rates: mean of the first `epoch`, which keeps equal weights (LibMTL); the first "
            "`batch`; or log C (`classes`). Default `epoch`: cross-entropies of single batches all start near log C.",
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        tasks = [f"unimodal {name}" for name in task.modalities]
        self.tasks = tasks if options.tasks == "modality" else ["fused", *tasks]
        # What is stepped: the weights, or the s of their softmax. Equal either way.
        self.learnt = torch.ones(len(self.tasks))
        self.moments = torch.zeros(2, len(self.tasks))
        self.steps = torch.zeros(())
        self.initial: Tensor | None = None
        if options.initial == "classes":
            self.initial = torch.full((len(self.tasks),), math.log(task.classes))
        self.loss_sum, self.samples = torch.zeros(len(self.tasks)), 0

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return why no weight would ever move: a first epoch that measures and is the last."""
        if options.initial == "epoch" and task.epochs < 2:
            return "measures L(0) in the first epoch and acts from the second, found 1 epoch; use initial=batch"
        return super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build the model, with a head per modality where unimodal losses are trained."""
        return self.task.build_model(unimodal_heads=self.options.tasks == "losses")

    def start_epoch(self, ctx: Context) -> None:
        """Bring the state to the model's device."""
        device = next(ctx.model.parameters()).device
        self.learnt, self.moments = self.learnt.to(device), self.moments.to(device)
        self.initial = None if self.initial is None else self.initial.to(device)
        self.loss_sum, self.samples = torch.zeros_like(self.learnt), 0

    @property
    def weights(self) -> Tensor:
        """The weights `(T,)`, which sum to T."""
        if self.options.parametrisation == "softmax":
            return len(self.learnt) * self.learnt.softmax(0)
        return self.learnt.clone()

    def modulate_features(
        self, gradients: dict[str, Tensor], forward: Forward, batch: Batch, ctx: Context
    ) -> dict[str, Tensor]:
        """Scale each modality's feature gradient by its weight, then learn the weights."""
        weights = self.weights
        with torch.no_grad():
            losses = torch.stack(list(unimodal_losses(forward, batch.labels).values()))
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()])
        self._learn(weights, norms, losses, batch, ctx)
        return {name: weight * gradients[name] for name, weight in zip(gradients, weights, strict=True)}

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch; with `tasks=losses` on the weighted sum of the losses."""
        if self.options.tasks == "modality":
            super().step(batch, ctx)
            return
        forward = ctx.forward(batch)
        losses = self.losses(forward, batch, ctx) | unimodal_losses(forward, batch.labels)
        weights = self.weights
        weighted = {name: weights[i] * losses[name] for i, name in enumerate(self.tasks)}
        apart = ctx.feature_gradients_per_loss(forward, weighted)
        norms = torch.stack([flatten(list(apart[name].values())).norm() for name in self.tasks]) / weights
        self._learn(weights, norms, torch.stack([losses[name].detach() for name in self.tasks]), batch, ctx)
        reached = {m: [by_modality[m] for by_modality in apart.values() if m in by_modality] for m in forward.features}
        ctx.encoder_backward(forward, {m: torch.stack(gradients).sum(0) for m, gradients in reached.items()})
        ctx.update(total(weighted))

    @torch.no_grad()
    def _learn(self, weights: Tensor, norms: Tensor, losses: Tensor, batch: Batch, ctx: Context) -> None:
        """Step the weights on the unweighted norms and losses `(T,)`, once the initial losses are known."""
        options = self.options
        for name, weight in zip(self.tasks, weights, strict=True):
            ctx.note(f"weight of {name}", weight)
        if self.initial is None and options.initial == "batch":
            self.initial = losses
        if self.initial is None:
            self.loss_sum += losses * len(batch)
            self.samples += len(batch)
            return
        gradient = weight_gradient(norms, weights, relative_rates(losses, self.initial), options.alpha)
        if options.parametrisation == "softmax":
            self._descend(softmax_gradient(gradient, weights))
        else:
            self._descend(gradient)
            self.learnt = renormalised(self.learnt)

    def _descend(self, gradient: Tensor) -> None:
        """Take a step of Adam."""
        # Its function, because the class looks for a GPU in every step, which costs more than all else here.
        adam(
            [self.learnt],
            [gradient],
            [self.moments[0]],
            [self.moments[1]],
            [],
            [self.steps],
            foreach=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.options.weight_lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def end_epoch(self, ctx: Context) -> None:
        """Take the first epoch's mean losses as the initial ones."""
        if self.initial is None:
            self.initial = self.loss_sum / self.samples

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, Adam's state and the initial losses."""
        return {"learnt": self.learnt, "moments": self.moments, "steps": self.steps, "initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.learnt, self.moments = state["learnt"], state["moments"]
        self.steps, self.initial = state["steps"].cpu(), state["initial"]
