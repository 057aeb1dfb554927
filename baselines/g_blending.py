"""Gradient-Blending: losses weighted by how much each branch generalises and overfits when trained alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.errors import DataError
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, Weights, option, reading
from benchmark.model import MultimodalModel
from benchmark.task import Task

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch, Part

FUSED = "fused"


@dataclass(frozen=True)
class Curve:
    """Mean cross-entropy (nats) of one branch, held-in and held-out, before and after training it alone."""

    train_before: float
    val_before: float
    train_after: float
    val_after: float

    @property
    def gain(self) -> float:
        """Generalisation G: by how much the held-out loss fell."""
        return self.val_before - self.val_after

    @property
    def overfitting(self) -> float:
        """Overfitting O: by how much the gap between held-out and held-in loss grew."""
        return (self.val_after - self.train_after) - (self.val_before - self.train_before)


def blend_weights(
    curves: Mapping[str, Curve], previous: Mapping[str, float], *, floor: float = 1e-4
) -> dict[str, float]:
    """Return the weights G / max(O^2, floor), normalised to sum 1; `previous` where no G is positive."""
    # The paper does not treat G < 0. Its absolute value, as in re-implementations, would reward overfitting.
    scores = {k: max(curve.gain, 0.0) / max(curve.overfitting**2, floor) for k, curve in curves.items()}
    total = sum(scores.values())
    return {k: score / total for k, score in scores.items()} if total > 0 else dict(previous)


def held_out_count(samples: int, fraction: float) -> int:
    """Return how many training samples are held out: some, never all; raises DataError below two samples."""
    if samples < 2:
        raise DataError(f"g_blending holds out training data, found {samples} sample(s). Use at least 2.")
    return min(max(1, round(fraction * samples)), samples - 1)


def held_out_indices(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return the sorted positions `(V,)` of a random part of `labels` `(N,)`, stratified by class."""
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=generator)
    # Sample k of a class of n ranks (k + 1/2) / n: the lowest ranks are an equal share of every class.
    rank = torch.empty(len(labels))
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (torch.arange(len(members)) + 0.5) / len(members)
    lowest = rank[order].argsort(stable=True)[: held_out_count(len(labels), fraction)]
    return order[lowest].sort().values


def branch_loss(forward: Forward, branch: str, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of one branch: the fused logits, or one modality's."""
    logits = forward.logits if branch == FUSED else forward.unimodal[branch]
    return functional.cross_entropy(logits, labels, reduction=reduction)


def mean_losses(passes: Iterable[tuple[Batch, Forward]], branches: Iterable[str]) -> dict[str, float]:
    """Return each branch's mean cross-entropy per sample over evaluated batches."""
    totals, samples = dict.fromkeys(branches, 0.0), 0
    for batch, forward in passes:
        for branch in totals:
            totals[branch] += branch_loss(forward, branch, batch.labels, "sum").item()
        samples += len(batch)
    return {branch: total / samples for branch, total in totals.items()}


class GBlending(Method):
    """Weighted sum of the fused and unimodal losses; weights estimated by training clones of each branch."""

    info = MethodInfo(
        title="G-Blending",
        paper="Wang, Tran, Feiszli. What Makes Training Multi-Modal Classification Networks Hard?",
        venue="CVPR 2020",
        arxiv="1905.12681",
        origin="facebookresearch/VMZ @ 4cc542d58c1c560571e1e962426e858e00de28d2 (without the estimation)",
        licence="Apache-2.0",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS, Intervention.DATA, Intervention.EXTRA_PASSES}),
        changes=frozenset({"encoders", "fusion", "head"}),
        passes=Passes(3.0, 2.7),
    )
    noop: ClassVar[Mapping[str, object]] = {"weights": {FUSED: 1.0}}

    # VMZ's tutorial: its offline estimates, with R3D-50 on Kinetics-400, for the verbs of all EPIC-Kitchens.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "kinetics400": {"weights": {"audio": 0.014, "video": 0.630, FUSED: 0.356}},
        "audioset": {"weights": {"audio": 0.239, "video": 0.384, FUSED: 0.377}},
        "epic_kitchens": {"weights": {"audio": 0.524, "video": 0.247, FUSED: 0.229}},
    }

    class Options(MethodOptions):
        """Form, estimation and its guards."""

        weights: Weights | None = option(
            None,
            "Fixed weights by modality and `fused` (missing: 0), which sum to 1; nothing is held out.",
        )
        form: Literal["online", "offline"] = reading(
            "online",
            "`online`: estimated from the current model at every super-epoch; `offline`: once, from the "
            "initial model, over the run's length. Default `online`: it follows the training (RGM and GMP do "
            "not say which they ran).",
        )
        super_epoch: float = option(0.1, "Super-epoch as a fraction of the run (10 of 100).", gt=0, le=1)
        held_out: float = option(
            0.1,
            "Fraction of the training data that measures generalisation (paper: not found). `online` never "
            "trains on it, or estimates would measure memory; `offline` does, starting afresh.",
            gt=0,
            le=0.5,
        )
        heads: Literal["separate", "slices"] = reading(
            "separate",
            "Unimodal losses on heads of their own (paper), or on slices of the fused head, which then "
            "receives every loss (BalanceBenchmark).",
        )
        floor: float = option(1e-4, "Smallest O^2 (squared nats), or an unmoved gap takes all weight.", gt=0)

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return why the weights do not fit the task's branches."""
        if FUSED in task.modalities:
            return f"gives the name {FUSED!r} to the joint branch; rename the modality of that name"
        branches = (*task.modalities, FUSED)
        if unknown := sorted(set(options.weights or {}).difference(branches)):
            return f"has no branch {', '.join(unknown)} to weight; use {', '.join(branches)}"
        return super().refuses(options, task)

    def __init__(self, options: Options, task: Task) -> None:
        """Start from the fixed weights, or from equal ones until the first estimate."""
        super().__init__(options, task)
        self.branches = (*task.modalities, FUSED)
        fixed = options.weights or dict.fromkeys(self.branches, 1 / len(self.branches))
        self.weights = {branch: fixed[branch] for branch in self.branches if fixed.get(branch)}
        self.estimates = 0
        self.held_out = torch.empty(0, dtype=torch.int64)

    def build(self) -> MultimodalModel:
        """Build the model, with unimodal heads where one is trained."""
        unimodal = any(branch != FUSED for branch in self.weights)
        return self.task.build_model(unimodal_heads=unimodal and self.options.heads == "separate")

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        """Return all parameters but the heads of branches that fixed weights leave out."""
        idle = tuple(
            f"unimodal_heads.{m}." for m in self.task.modalities if self.options.weights and m not in self.weights
        )
        return {name: value for name, value in model.named_parameters() if not name.startswith(idle)}

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return every branch's weighted cross-entropy."""
        return {k: weight * branch_loss(forward, k, batch.labels) for k, weight in self.weights.items()}

    def batches(self, ctx: Context) -> Iterable[Batch]:
        """Return the batches of all data, or only of the held-in part where estimates are still to come."""
        whole = self.options.weights or self.options.form == "offline"
        return ctx.batches(indices=None if whole else ctx.train.others(self.held_out))

    def start_epoch(self, ctx: Context) -> None:
        """Estimate the weights where a super-epoch begins."""
        length = self._super_epoch(ctx.epochs)
        if self.options.weights or ctx.epoch != self.estimates * length:
            return
        if ctx.epoch == 0:
            self.held_out = held_out_indices(ctx.train.labels, self.options.held_out, ctx.generator)
        curves = self._curves(ctx, min(length, ctx.epochs - ctx.epoch))
        self.weights = blend_weights(curves, self.weights, floor=self.options.floor)
        self.estimates += 1
        for branch, weight in self.weights.items():
            ctx.note(f"weight of {branch}", weight)

    def _super_epoch(self, epochs: int) -> int:
        return epochs if self.options.form == "offline" else max(1, round(self.options.super_epoch * epochs))

    def _curves(self, ctx: Context, epochs: int) -> dict[str, Curve]:
        """Train a clone of each branch alone and compare its losses before and after."""
        parts = ctx.train.subset(ctx.train.others(self.held_out)), ctx.train.subset(self.held_out)
        before = [mean_losses(ctx.evaluate(part), self.branches) for part in parts]
        return {
            branch: Curve(*(losses[branch] for losses in (*before, *self._alone(branch, parts, epochs, ctx))))
            for branch in self.branches
        }

    def _alone(self, branch: str, parts: tuple[Part, Part], epochs: int, ctx: Context) -> list[dict[str, float]]:
        """Return a branch's losses on both parts after training its clone on the first."""
        only = None if branch == FUSED else [branch]

        def step(batch: Batch, side: Context) -> None:
            forward = side.forward(batch, only)
            side.descend(forward, branch_loss(forward, branch, batch.labels))

        clone, ahead = copy.deepcopy(ctx.model).train(), range(ctx.epoch, ctx.epoch + epochs)
        used, axis = self._used_by(branch, clone), f"{self.estimates}/{branch}"
        side = ctx.train_aside(clone, used, axis, step, epochs=ahead, part=parts[0])
        return [mean_losses(side.evaluate(part, only), [branch]) for part in parts]

    @staticmethod
    def _used_by(branch: str, model: MultimodalModel) -> dict[str, nn.Parameter]:
        """Return the parameters between a branch's inputs and its logits."""
        encoders = "encoders." if branch == FUSED else f"encoders.{branch}."
        separate = branch != FUSED and model.unimodal_heads
        heads = (f"unimodal_heads.{branch}.",) if separate else ("fusion.", "head.")
        return model.parameters_under(encoders, *heads)

    def expected_passes(self, plan: Plan) -> Passes:
        """Return the run's own passes, and per estimate two clones and three evaluations of every encoder."""
        if self.options.weights:
            return Passes()
        held_in = 1 - held_out_count(plan.train, self.options.held_out) / plan.train
        estimates = -(-plan.epochs // self._super_epoch(plan.epochs))
        backward = (1.0 if self.options.form == "offline" else held_in) + 2 * held_in
        return Passes(backward + 3 * estimates / plan.epochs, backward)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the number of estimates made and the held-out samples."""
        return {"weights": dict(self.weights), "estimates": self.estimates, "held_out": self.held_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.weights = dict(state["weights"])
        self.estimates = state["estimates"]
        self.held_out = state["held_out"]
