"""ReconBoost: train the modalities in turn, each boosting the others' ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from benchmark.fusion import Fusion
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, option, reading
from benchmark.model import MultimodalModel, SharedHeadModel
from benchmark.task import Task

if TYPE_CHECKING:
    from benchmark.context import Context
    from benchmark.data import Batch

Reconcilement = Literal["true_class", "full"]


def boosting_weights(
    labels: Tensor, ensemble: Tensor | None, *, error_weight: float = 5.0, reconcile_weight: float = 1.0
) -> Tensor:
    """Return `(B,)` w1 - w2 q, where q is the true class's probability under the ensemble's logits `(B, C)`.

    `ensemble=None` is the first stage: nobody has been trained before and the official code arrives at q = 1.
    """
    if ensemble is None:
        return torch.full(labels.shape, error_weight - reconcile_weight, device=labels.device)
    true_class = ensemble.detach().softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    return error_weight - reconcile_weight * true_class


def boosting_loss(
    logits: Tensor,
    labels: Tensor,
    ensemble: Tensor | None,
    *,
    error_weight: float = 5.0,
    reconcile_weight: float = 1.0,
    form: Reconcilement = "true_class",
) -> Tensor:
    """Return the loss `(B,)` of the modality in training from its and the ensemble's logits `(B, C)`.

    `true_class`: (w1 - w2 q) cross-entropy / C, as in the official code. `full`: w1 cross-entropy - w2
    KL(softmax(ensemble) || p), whose gradient at w1 = w2 = 1 is boosting's negative residual for any logits,
    softmax(ensemble) - onehot; an empty ensemble predicts uniformly there.
    """
    errors = functional.cross_entropy(logits, labels, reduction="none")
    if form == "true_class":
        weights = boosting_weights(labels, ensemble, error_weight=error_weight, reconcile_weight=reconcile_weight)
        return weights.to(errors) * errors / logits.shape[1]
    target = (torch.zeros_like(logits) if ensemble is None else ensemble.detach()).log_softmax(1)
    terms = functional.kl_div(logits.log_softmax(1), target, reduction="none", log_target=True)
    return error_weight * errors - reconcile_weight * terms.sum(dim=1)


def consolidation_loss(logits: Tensor, previous: Tensor) -> Tensor:
    """Return the mean squared distance of two predictions, given logits `(B, C)`; `previous` stays fixed."""
    return functional.mse_loss(logits.softmax(dim=1), previous.detach().softmax(dim=1))


@dataclass(frozen=True)
class Phase:
    """What one epoch trains: `active` alone against the ensemble, or (None) all `members` together."""

    active: str | None
    members: tuple[str, ...]
    previous: str | None
    begins: bool


def phase(epoch: int, modalities: tuple[str, ...], boosting_epochs: int, rectification_epochs: int) -> Phase:
    """Return an epoch's phase: stage s boosts modality s mod M, then trains all that have joined so far."""
    stage, position = divmod(epoch, boosting_epochs + rectification_epochs)
    return Phase(
        active=modalities[stage % len(modalities)] if position < boosting_epochs else None,
        members=modalities[: stage + 1],
        previous=modalities[(stage - 1) % len(modalities)] if stage > 0 else None,
        begins=position in (0, boosting_epochs),
    )


class BoostedModel(SharedHeadModel):
    """Late fusion: the members' logits, from a head that all share, summed and scaled by a learnt beta.

    A modality missing from the features has no say, like one not yet a member.
    """

    members: Tensor

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: type[Fusion], classes: int, *_: bool) -> None:
        super().__init__(encoders, fusion, classes)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("members", torch.ones(len(self.modalities), dtype=torch.bool))

    @staticmethod
    def shared_head(width: int, classes: int) -> nn.Module:
        """Build two layers, officially 512-256-C."""
        return nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, classes))

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the ensemble's logits `(B, C)`: beta times the sum over members of h(z_m)."""
        votes = self.unimodal_logits(features)
        joined = dict(zip(self.modalities, self.members, strict=True))
        total = torch.stack([vote * joined[m] for m, vote in votes.items()]).sum(0)
        return self.scale * total


class ReconBoost(Method):
    """Modalities train in turn, each on what the others' ensemble gets wrong, with joint phases in between.

    Epochs are passes over the data: N epochs hold N / (E1 + E2) stages, whatever the number of modalities. The
    official learning rate falls every 30 stages; here it follows the protocol's schedule.
    """

    info = MethodInfo(
        title="ReconBoost",
        paper="Hua, Xu, Bao, Yang, Huang: ReconBoost: Boosting Can Achieve Modality Reconcilement",
        venue="ICML 2024",
        arxiv="2405.09321",
        origin="huacong/ReconBoost @ 14ab57ac26e0ad7badb29c4e08ec4ca9d4bb0932",
        licence="none stated",
        category="both",
        interventions=frozenset({Intervention.SCHEDULE, Intervention.LOSS}),
        changes=frozenset({"encoders", "fusion", "head"}),
        passes=Passes(forward=1.0, backward=0.75),
        equal_widths=True,
    )

    # The repository's commands.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"error_weight": 5.0, "reconcile_weight": 1.0},
        **{name: {"error_weight": 4.0, "reconcile_weight": 1.0} for name in ("ave", "modelnet40")},
        **{name: {"error_weight": 1.0, "reconcile_weight": 0.25} for name in ("cmu_mosi", "cmu_mosei", "sims")},
    }

    class Options(MethodOptions):
        """Weights, length of the phases, and readings."""

        error_weight: float = option(5.0, "w1: weight of the cross-entropy (5 on CREMA-D, 4 on AVE)", gt=0)
        reconcile_weight: float = option(1.0, "w2: by how much confidence lowers it; at most w1", ge=0)
        scale: float = option(1.0, "initial beta, the learnt factor on the summed logits", gt=0)
        boosting: float = option(
            4 / 800,
            "E1: length of a boosting phase as a fraction of the run, one epoch at least. Officially 4 of 800 epochs "
            "(4 of 100: 0.04).",
            ge=0,
            le=1,
        )
        rectification: float = option(4 / 800, "E2: length of a joint rectification, likewise.", ge=0, le=1)
        reconcilement: Reconcilement = reading(
            "true_class",
            "true_class: the code keeps only the KL term's true class, with gradient (w1 - w2 q)(p - y) / C. "
            "full: the abstract's whole KL term, summed over classes; w1 = w2 = 1 gives boosting's residual.",
        )
        consolidation: Literal["none", "previous"] = reading(
            "none",
            "none: memory consolidation has no gradient in the code, which detaches both sides. previous: "
            "only the side of the modality trained before is detached, so that the term acts.",
        )
        consolidation_weight: float = option(0.5, "alpha: weight of memory consolidation where it acts", ge=0)

        @model_validator(mode="after")
        def _weights_keep_the_sign(self) -> ReconBoost.Options:
            w1, w2 = self.error_weight, self.reconcile_weight
            if w2 > w1:
                raise ValueError(f"reconcile_weight {w2:g} > error_weight {w1:g} would flip the loss's sign; lower it")
            return self

    @classmethod
    def refuses(cls, options: Any, task: Task) -> str | None:
        """Refuse a run that ends before every modality has joined the ensemble, too."""
        needed = (len(task.modalities) - 1) * sum(cls.lengths(options, task.epochs)) + 1
        if task.epochs < needed:
            return f"trains one modality after the other and needs at least {needed} epochs, found {task.epochs}"
        return super().refuses(options, task)

    @staticmethod
    def lengths(options: Any, epochs: int) -> tuple[int, int]:
        """Return E1 and E2 in a run of so many epochs."""
        return max(1, round(options.boosting * epochs)), max(1, round(options.rectification * epochs))

    def phase(self, epoch: int, epochs: int) -> Phase:
        """Return what an epoch (from 0) of a run trains."""
        return phase(epoch, self.task.modalities, *self.lengths(self.options, epochs))

    def build(self) -> MultimodalModel:
        """Build the late-fusion model with its shared head."""
        model = self.task.build_model(model_class=BoostedModel)
        assert isinstance(model, BoostedModel)
        nn.init.constant_(model.scale, self.options.scale)
        return model

    def start_epoch(self, ctx: Context) -> None:
        """Let the active modality join; begin every phase with a fresh optimiser over what it trains."""
        now, model = self.phase(ctx.epoch, ctx.epochs), ctx.model
        assert isinstance(model, BoostedModel)
        model.members.copy_(torch.tensor([m in now.members for m in model.modalities]))
        if now.begins:
            learners = now.members if now.active is None else (now.active,)
            shared = ("head.", "scale") if now.active is None else ("head.",)
            trained = (*shared, *(f"encoders.{m}." for m in learners))
            ctx.reset_optimizer(model.parameters_under(*trained))

    def step(self, batch: Batch, ctx: Context) -> None:
        """Boost the active modality, or train the whole ensemble on its summed logits."""
        now = self.phase(ctx.epoch, ctx.epochs)
        if now.active is None:
            forward = ctx.forward(batch, only=now.members)
            loss = functional.cross_entropy(forward.logits, batch.labels)
        else:
            ensemble, previous = self._fixed(now, batch, ctx)
            forward = ctx.forward(batch, only=(now.active,))
            logits = forward.unimodal[now.active]
            loss = boosting_loss(
                logits,
                batch.labels,
                ensemble,
                error_weight=self.options.error_weight,
                reconcile_weight=self.options.reconcile_weight,
                form=self.options.reconcilement,
            ).mean()
            if previous is not None:
                loss = loss + self.options.consolidation_weight * consolidation_loss(logits, previous)
        ctx.descend(forward, loss)

    @torch.no_grad()
    def _fixed(self, now: Phase, batch: Batch, ctx: Context) -> tuple[Tensor | None, Tensor | None]:
        """Return logits `(B, C)` of the others' ensemble and, for consolidation, of the one trained last."""
        if now.previous is None:
            return None, None
        forward = ctx.forward(batch, only=[m for m in now.members if m != now.active])
        acts = self.options.consolidation == "previous"
        return forward.logits, forward.unimodal[now.previous] if acts else None

    def expected_passes(self, plan: Plan) -> Passes:
        """Boosting runs all members forward and one backward; rectification runs all members both ways."""
        phases = [self.phase(epoch, plan.epochs) for epoch in range(plan.epochs)]
        total = plan.epochs * len(plan.modalities)
        return Passes(
            forward=sum(len(now.members) for now in phases) / total,
            backward=sum(len(now.members) if now.active is None else 1 for now in phases) / total,
        )
