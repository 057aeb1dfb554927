"""PMR: the modality whose class prototypes classify a batch worse gets a prototypical loss on its encoder.

Fan, Xu, Wang, Wang, Guo: "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023. A prototype is a
class's mean feature; minus the distances to all prototypes are a modality's prototypical logits `(B, C)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional

from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    Passes,
    Plan,
    option,
    reading,
    summed_confidences,
)

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

Coefficient = Literal["binary", "clip"]


def refresh_size(samples: int, batch_size: int) -> int:
    """Return how many samples refresh the prototypes: a tenth of the epoch's batches, rounded down, at least one."""
    batches = -(-samples // batch_size)
    return min(samples, batch_size * max(1, batches // 10))


def refresh_sample(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return `size` random positions in `labels` `(N,)`, but at least one of every class that occurs.

    Without that, a rare class divides 0 by 0 and its NaN stays in the prototypes (official code).
    """
    order = torch.randperm(len(labels), generator=generator)
    classes, inverse = labels.cpu()[order].unique(return_inverse=True)
    turns = torch.arange(len(order))
    first = torch.full((len(classes),), len(order)).scatter_reduce_(0, inverse, turns, "amin")
    first_come = (first[inverse] != turns).to(torch.uint8).argsort(stable=True)
    return order[first_come][: max(size, len(classes))]


def class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return the mean feature `(C, d)` of every class from features `(N, d)`; each of the C classes must occur."""
    members = functional.one_hot(targets, classes).to(features)
    return members.T @ features / members.sum(0)[:, None]


def refreshed(old: Tensor, fresh: Tensor, momentum: float) -> Tensor:
    """Return (1 - momentum) fresh + momentum old, for prototypes `(C, d)`."""
    return fresh.lerp(old.to(fresh), momentum)


def prototype_logits(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return minus the Euclidean distances `(B, C)` of features `(B, d)` to prototypes `(C, d)`.

    A feature on its prototype gets no gradient from that distance, where a plain square root would give NaN.
    """
    return -torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")


def coefficients(score: Tensor, coefficient: Coefficient = "binary") -> Tensor:
    """Return beta `(M,)` from S `(M,)`: 0 for the best modality; 1, or clip(best / S - 1, 0, 1), for all others."""
    if coefficient == "binary":
        return (score < score.max()).to(score)
    return (score.max() / score - 1).nan_to_num(0.0).clamp(0, 1)


def entropy_coefficients(score: Tensor, beta: Tensor) -> Tensor:
    """Return the weights `(M,)` of the entropies: the mean beta of the others for the best modality, 0 for all others.

    For two modalities this is (beta_v, beta_a); how more are treated is ours.
    """
    return (score == score.max()) * beta.sum() / (len(beta) - 1)


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy, in nats, of softmax(logits) `(B, C)`, averaged over the batch."""
    return functional.cross_entropy(logits, logits.softmax(1))


class PMR(Method):
    """Weaker modalities get a cross-entropy over distances to class prototypes, refreshed before every epoch.

    With more than two modalities each is compared with the best one. Some official scripts average over validation
    data; prototypes here are of training samples alone, because validation data select the epoch.
    """

    info = MethodInfo(
        title="PMR",
        paper="Fan, Xu, Wang, Wang, Guo: PMR: Prototypical Modal Rebalance for Multimodal Learning",
        venue="CVPR 2023",
        arxiv="2211.07089",
        origin="fanyunfeng-bit/Modal-Imbalance-PMR @ 3615e48983555089b0e693380087617c3797a641",
        licence="MIT",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS, Intervention.EXTRA_PASSES}),
        changes=frozenset({"encoders"}),
        passes=Passes(forward=1.07),
    )
    noop: ClassVar[Mapping[str, object]] = {"alpha": 0.0}

    # Released list of commands, concat and sum fusion.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"alpha": 2.0, "momentum": 0.0, "end": 0.7},
        "ave": {"alpha": 2.0, "momentum": 0.0, "end": 0.7},
        "cg_mnist": {"alpha": 1.0, "momentum": 0.0, "end": 0.6},
    }

    class Options(MethodOptions):
        """Weights, windows and one reading."""

        alpha: float = option(
            1.0,
            "Weight of the prototypical losses. Official: 1 (code, CG-MNIST), 2 for concat and sum fusion on CREMA-D "
            "and AVE, 3 (AVE 0.5 to 3) for FiLM and gated; BalanceBenchmark 0.6.",
            ge=0,
        )
        momentum: float = option(
            0.0,
            "Share of the old prototypes that a refresh keeps, from the third refresh on. Code: 0.2, but 0 in "
            "almost every released command.",
            ge=0,
            lt=1,
        )
        end: float = option(
            0.7,
            "Last epoch with the prototypical losses, as a fraction of the run. Official: epochs 0 to 70 of 100.",
            ge=0,
            le=1,
        )
        coefficient: Coefficient = reading(
            "binary",
            "Weight beta of a modality that is not the best: 1 (`binary`, released code), or by how much it lags, "
            "clip(best score / own score - 1, 0, 1) (`clip`, paper). Default `binary`: all public numbers have it.",
        )
        entropy: NonNegativeFloat = reading(
            0.0,
            "Weight mu of the entropy that slows the best modality: in the paper, absent from the released code. The "
            "batch mean is meant; 0.01 on a sum over 64 samples, in BalanceBenchmark's first code, is 0.64 here. "
            "Default 0: the released code.",
        )
        entropy_end: float = option(
            0.1, "First epoch without that entropy, as a fraction of the run (10 of 100 epochs).", ge=0, le=1
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.prototypes: dict[str, Tensor] = {}
        self.classes = torch.empty(0, dtype=torch.int64)

    def acts(self, epoch: int, epochs: int) -> bool:
        """Return whether an epoch lies in the window, its end included."""
        return epoch / epochs <= self.options.end

    @torch.no_grad()
    def start_epoch(self, ctx: Context) -> None:
        """Refresh the prototypes from a tenth of the training data, augmented, in evaluation mode."""
        if not self.acts(ctx.epoch, ctx.epochs):
            return
        labels = ctx.train.labels
        self.classes = labels.unique()
        chosen = refresh_sample(labels, refresh_size(len(labels), ctx.plan.batch_size), ctx.generator)
        augment = ctx.generator if ctx.run.protocol.augment else None
        # Not ctx.batches: its first call in an epoch is the order in which every method trains.
        batches = ctx.train.batches(ctx.plan.batch_size, indices=chosen, augment=augment)
        ctx.model.eval()
        seen = [(ctx.forward(batch).features, batch.labels) for batch in batches]
        ctx.model.train()
        targets = torch.searchsorted(self.classes, torch.cat([labels for _, labels in seen]))
        for name in ctx.model.modalities:
            fresh = class_means(torch.cat([features[name] for features, _ in seen]), targets, len(self.classes))
            if ctx.epoch >= 2:  # officially, the refreshes before and after the first epoch keep nothing
                fresh = refreshed(self.prototypes[name], fresh, self.options.momentum)
            self.prototypes[name] = fresh

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss and, in the window, each modality's weighted prototypical loss and entropy."""
        result = super().losses(forward, batch, ctx)
        if not self.acts(ctx.epoch, ctx.epochs):
            return result
        options, targets = self.options, torch.searchsorted(self.classes, batch.labels)
        logits = {name: prototype_logits(values, self.prototypes[name]) for name, values in forward.features.items()}
        with torch.no_grad():
            score = summed_confidences(logits, targets)
            beta = coefficients(score, options.coefficient)
        for (name, values), weight in zip(logits.items(), beta, strict=True):
            ctx.note(f"beta of {name}", weight)
            result[f"prototypes {name}"] = options.alpha * weight * functional.cross_entropy(values, targets)
        if options.entropy and ctx.epoch / ctx.epochs < options.entropy_end:
            for (name, values), weight in zip(logits.items(), entropy_coefficients(score, beta), strict=True):
                result[f"entropy {name}"] = -options.entropy * weight * mean_entropy(values)
        return result

    def expected_passes(self, plan: Plan) -> Passes:
        """One more forward pass for the samples that refresh the prototypes, in every epoch of the window."""
        size = min(plan.train, max(refresh_size(plan.train, plan.batch_size), self.task.classes))
        refreshes = sum(self.acts(epoch, plan.epochs) for epoch in range(plan.epochs))
        return Passes(forward=1 + size * refreshes / (plan.train * plan.epochs))

    def state_dict(self) -> dict[str, Any]:
        """Return the prototypes."""
        return {"prototypes": self.prototypes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the prototypes."""
        self.prototypes = dict(state["prototypes"])
