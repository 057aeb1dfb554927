"""MLA: one modality after the other through a shared head that unlearns little, fused by confidence when predicting.

Zhang, Yoon, Bansal, Yao: "Multimodal Representation Learning by Alternating Unimodal Adaptation", CVPR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Weights, option, reading
from benchmark.model import MultimodalModel, SharedHeadModel

if TYPE_CHECKING:
    from benchmark.context import Context
    from benchmark.data import Batch
    from benchmark.task import Task

Softmax = Literal["classes", "batch"]


def shrink_projection(projection: Tensor, feature: Tensor, alpha: float) -> Tensor:
    """Return P - P h (P h)^T / (alpha + h^T P h) `(d, d)` for a feature h `(d,)`: head gradients G become G P.

    From P = I with constant alpha this is alpha (alpha I + sum of h h^T)^-1, so that G P has little left along
    features seen before: orthogonal weight modification, recursive least squares without forgetting.
    """
    moved = projection @ feature
    return projection - torch.outer(moved, moved) / (alpha + feature.dot(moved))


def alpha_at(batch: int, batches: int, start: float = 0.1, decay: float = 0.1) -> float:
    """Return start * decay^(i / n) for batch i (from 0) of an epoch's n; officially 0.1 falling towards 0.01."""
    return start * math.pow(decay, min(batch / max(batches, 1), 1.0))


def entropies(logits: Tensor, softmax: Softmax = "classes") -> Tensor:
    """Return the entropy `(B,)` in nats of each row of logits `(B, C)`.

    "batch": the softmax runs over the samples, and every row gets the sum over all entries.
    """
    logs = logits.log_softmax(0 if softmax == "batch" else 1)
    terms = -(logs.exp() * logs).sum(1)
    return terms.sum().expand_as(terms) if softmax == "batch" else terms


def confidence_weights(logits: Mapping[str, Tensor], softmax: Softmax = "classes") -> dict[str, Tensor]:
    """Return each modality's weight `(B,)`, softmax over modalities of its negative entropy, from logits `(B, C)`."""
    # The official exp(largest entropy - own) overflows where this does not.
    weights = torch.stack([-entropies(values, softmax) for values in logits.values()]).softmax(0)
    return dict(zip(logits, weights, strict=True))


def fuse(logits: Mapping[str, Tensor], weights: Mapping[str, Tensor | float]) -> Tensor:
    """Return the weighted sum `(B, C)` of unimodal logits `(B, C)`, with weights `(B,)` or numbers."""
    scaled = [torch.as_tensor(weights[m]).to(values)[..., None] * values for m, values in logits.items()]
    return torch.stack(scaled).sum(0)


class ConfidenceModel(SharedHeadModel):
    """Late fusion of a shared head's logits by confidence; a modality missing from the features has no say."""

    softmax: Softmax = "classes"
    weights: Mapping[str, float] | None = None

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the fused logits `(B, C)`, weighted by confidence or by fixed numbers."""
        logits = self.unimodal_logits(features)
        return fuse(logits, self.weights or confidence_weights(logits, self.softmax))


class MLA(Method):
    """Every batch takes one optimiser step per modality, each on that modality's own loss; none is on a fused loss."""

    info = MethodInfo(
        title="MLA",
        paper="Zhang, Yoon, Bansal, Yao: Multimodal Representation Learning by Alternating Unimodal Adaptation",
        venue="CVPR 2024",
        arxiv="2311.10707",
        origin="Cecile-hi/Multimodal-Learning-with-Alternating-Unimodal-Adaptation "
        "@ ab6c184579f9ff390e9c9b8216c9900c2a43545b",
        licence="none stated",
        category="both",
        interventions=frozenset(
            {Intervention.SCHEDULE, Intervention.LOSS, Intervention.PARAMETER_GRADIENT, Intervention.FORWARD}
        ),
        changes=frozenset({"encoders", "fusion", "head"}),
        equal_widths=True,
    )

    class Options(MethodOptions):
        """Head modification and how predictions are fused."""

        head_mod: Literal["owm", "none"] = reading(
            "owm",
            "What becomes of the shared head's gradient. `owm`: multiplied by P, the paper's idea, with the scalar "
            "denominator of recursive least squares. `none`: nothing, which is what the released code trains: it "
            "looks for a parameter name that does not exist. (An earlier release divides by an outer product and "
            "then by P's norm; a peer adds G P to G. Neither protects anything.)",
        )
        order: Literal["apply_first", "update_first"] = reading(
            "apply_first",
            "`update_first`: P takes in the batch's mean feature before the gradient it came with is multiplied, as "
            "in code, which removes what this modality is about to learn. Default `apply_first`: features seen "
            "before are protected, as orthogonal weight modification has it.",
        )
        alpha: float = option(0.1, "Regulariser of P at an epoch's start (officially 0.1 on all datasets).", gt=0)
        alpha_decay: float = option(
            0.1, "Factor on alpha across an epoch (officially 0.1: down to 0.01); 1 keeps it constant.", gt=0, le=1
        )
        softmax: Softmax = reading(
            "classes",
            "Axis of the softmax whose entropy weights the logits. `batch`: over the samples, as released, so that a "
            "modality has one weight per test batch, which depends on its size. Default `classes`: per sample, as "
            "described.",
        )
        weights: Weights | None = option(
            None,
            "Fixed fusion weights by modality, which sum to 1, in place of confidence. Official, tuned by hand: "
            "audio 0.55, visual 0.45; with text 0.35 audio, 0.25 visual, 0.4 text.",
        )

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return why fixed weights do not fit the task's modalities."""
        if options.weights is not None and set(options.weights) != set(task.modalities):
            return f"needs one weight per modality ({', '.join(task.modalities)}), found {', '.join(options.weights)}"
        return super().refuses(options, task)

    def __init__(self, options: Options, task: Task) -> None:
        """Start from the identity: no direction is protected."""
        super().__init__(options, task)
        width = max(task.widths.values())
        self.projection = torch.eye(width) if options.head_mod == "owm" else None
        self.batch = 0

    def build(self) -> MultimodalModel:
        """Build the late-fusion model with its shared head."""
        model = self.task.build_model(model_class=ConfidenceModel)
        assert isinstance(model, ConfidenceModel)
        model.softmax, model.weights = self.options.softmax, self.options.weights
        return model

    def start_epoch(self, ctx: Context) -> None:
        """Begin alpha's schedule anew."""
        self.batch = 0

    def step(self, batch: Batch, ctx: Context) -> None:
        """Take one optimiser step per modality, in the dataset's order, each with the head the last one left."""
        for modality in ctx.model.modalities:
            # No other modality's step moves this encoder, so encoding now or before them is the same.
            forward = ctx.forward(batch, only=[modality])
            loss = functional.cross_entropy(forward.unimodal[modality], batch.labels)
            ctx.encoder_backward(forward, ctx.feature_gradients(forward, loss))
            self._protect(forward.features[modality], ctx)
            ctx.update(loss)
        self.batch += 1

    @torch.no_grad()
    def _protect(self, features: Tensor, ctx: Context) -> None:
        """Multiply the head's gradient `(C, d)` by P, and P by what is left of the batch's mean feature."""
        gradient = ctx.model.head.weight.grad
        if self.projection is None or gradient is None:
            return
        before = self.projection.to(features)
        batches = math.ceil(ctx.plan.train / ctx.plan.batch_size)
        alpha = alpha_at(self.batch, batches, self.options.alpha, self.options.alpha_decay)
        self.projection = shrink_projection(before, features.mean(0), alpha)
        gradient.copy_(gradient @ (before if self.options.order == "apply_first" else self.projection))

    def state_dict(self) -> dict[str, Any]:
        """Return P; alpha's schedule begins with the epoch."""
        return {} if self.projection is None else {"projection": self.projection}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore P."""
        self.projection = state.get("projection")
