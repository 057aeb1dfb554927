"""CMRF: every modality's projection is pulled towards mixtures of two modalities' projections by an averaged teacher.

Fan, Xu, Wang, Guo: "Cross-modal Representation Flattening for Multi-modal Domain Generalization", NeurIPS 2024. Read
from the official code. Step t counts from 1; after it the teacher is the mean of the weights after steps t0 to t, and
until t0 the student itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.alignment import supervised_contrast, unit_distance
from benchmark.averaging import MovingAverage
from benchmark.heads import Shares, applied, drop_features, misnamed, projection
from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    Passes,
    Plan,
    option,
    reading,
    unimodal_losses,
)

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.model import MultimodalModel, Prediction
    from benchmark.task import Task

Importance = Literal["half for audio", "equal"]


def importances(modalities: Sequence[str], importance: Importance) -> dict[str, float]:
    """Return omega of every modality."""
    return {m: 0.5 if m == "audio" and importance == "half for audio" else 1.0 for m in modalities}


def own_shares(shape: tuple[int, ...], beta: float, generator: torch.Generator) -> Tensor:
    """Draw shares from Beta(beta, beta), given that they are above one half; CPU, float32."""
    seed = int(torch.randint(2**62, (), generator=generator))
    drawn = torch.from_numpy(np.random.default_rng(seed).beta(beta, beta, shape))
    # The distribution is symmetric: the larger of the two parts has the conditional one.
    return torch.maximum(drawn, 1 - drawn).float()


def mixture(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return share own + (1 - share) other of vectors `(B, d)`, by sample from shares `(B,)`."""
    return share[:, None] * own + (1 - share[:, None]) * other


def distillation(
    projected: Mapping[str, Tensor], taught: Mapping[str, Tensor], shares: Sequence[Tensor], omega: Mapping[str, float]
) -> Tensor:
    """Return the distances of the student's unit vectors `(B, d)` to their mixtures of the teacher's, times omega.

    Every modality is mixed with every other, its own share coming from `shares`, `(B,)` by ordered pair; all distances
    are summed.
    """
    pairs = zip(permutations(projected, 2), shares, strict=True)
    distances = [
        omega[m] * unit_distance(mixture(taught[m], taught[other], share), projected[m]) for (m, other), share in pairs
    ]
    return torch.stack(distances).sum()


class CMRF(Method):
    """Joint training with unimodal heads, contrast of modalities, and distillation of an averaged teacher's mixtures.

    The fused head is the protocol's, without the official dropout of 0.5 in its hidden layer.
    """

    info = MethodInfo(
        title="CMRF",
        paper="Fan, Xu, Wang, Guo: Cross-modal Representation Flattening for Multi-modal Domain Generalization",
        venue="NeurIPS 2024",
        arxiv=None,
        origin="fanyunfeng-bit/Cross-modal-Representation-Flattening-for-MMDG @ "
        "39d97f227f1e4ca41f3ea40870c1fac2d205a443",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS, Intervention.EXTRA_PASSES}),
        changes=frozenset({"encoders"}),
        passes=Passes(2, 1),
    )
    noop: ClassVar[Mapping[str, object]] = {"distillation_weight": 0.0, "unimodal_weight": 0.0, "contrast_weight": 0.0}
    adversarial = False

    # 400 and 100 steps of 15 epochs with batches of 16, which have 330 and 113 steps in the mean of the targets.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "epic_kitchens": {"averaging_start": 0.081},
        "hac": {"averaging_start": 0.059},
    }

    class Options(MethodOptions):
        """Weights, the teacher's average, sizes of the heads, and readings."""

        distillation_weight: float = option(
            3.0, "Weight of the distillation in the published commands; 1 is the code's default.", ge=0
        )
        unimodal_weight: float = option(
            2.0, "Weight of the unimodal losses in the published commands; 1 is the code's default.", ge=0
        )
        contrast_weight: float = option(
            3.0, "Weight of the contrast (official), which has a factor temperature / 0.07 besides.", ge=0
        )
        temperature: float = option(0.1, "Temperature of the contrast (official).", gt=0)
        mixture_beta: float = option(
            0.1,
            "Parameter of the symmetric Beta distribution of a mixture's shares (official). At 0.1 most targets are "
            "nearly the modality's own: its share is above 0.99 in about 64 of 100.",
            gt=0,
        )
        averaging_start: float = option(
            1 / 15,
            "Steps before distillation and averaging begin, as a fraction of the run. Official: 400 steps on "
            "EPIC-Kitchens, 100 on HAC, each about one of 15 epochs.",
            ge=0,
            le=1,
        )
        hidden: int = option(2048, "Units of the projections' hidden layers, for 512 to 2304 features.", ge=1)
        out: int = option(128, "Features that are contrasted and distilled.", ge=1)
        feature_dropout: Shares = option(
            {},
            "Share of its features that a modality drops in training, before fusion and all losses. Officially 0.5 for "
            "video and flow, none for audio, in the backbones' heads; those here have none.",
        )
        judged: Literal["teacher", "student"] = reading(
            "teacher",
            "Who is evaluated, and by whose validation accuracy the epoch is selected. The code prints the accuracies "
            "of the `student`; the paper's captions name the `teacher`. Default `teacher`: the paper, and what the "
            "average is for.",
        )
        importance: Importance = reading(
            "half for audio",
            "Weight of a modality in distillation and unimodal losses. The paper speaks of weights that adapt to how "
            "well a modality generalises; the code has 1, and one `half for audio`. Default: the code, whose numbers "
            "are known. `equal` is 1 for all, as it is wherever there is no audio.",
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.omega = importances(task.modalities, options.importance)
        self._first = 0

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return which dropout is for no modality of the task."""
        return misnamed(options.feature_dropout, task.modalities) or super().refuses(options, task)

    @classmethod
    def sample_options(cls, task: Task) -> dict[str, object]:
        """Return heads as small as the encoders of conformance runs, and weights for their learning rate.

        It is 500 times the official one.
        """
        return {"hidden": 16, "out": 8, "contrast_weight": 0.3, "distillation_weight": 0.3, "unimodal_weight": 0.5}

    def build(self) -> MultimodalModel:
        """Build the model with unimodal heads and projections, and the teacher as its copy."""
        options = self.options
        model = self.task.build_model(unimodal_heads=True)
        drop_features(model, options.feature_dropout)
        model.projections = nn.ModuleDict(
            {m: projection(width, options.hidden, options.out) for m, width in self.task.widths.items()}
        )
        model.teacher = MovingAverage(model)
        return model

    def start_epoch(self, ctx: Context) -> None:
        """Find the step from which weights are averaged."""
        self._first = self._first_averaged(len(ctx.train), ctx.plan)

    def _first_averaged(self, train: int, plan: Plan) -> int:
        """Return t0, the step after which the weights are the first in the mean."""
        return round(self.options.averaging_start * plan.epochs * math.ceil(train / plan.batch_size))

    def end_step(self, ctx: Context) -> None:
        """Take the step's weights into the teacher."""
        _teacher(ctx.model).follow(ctx.model, max(ctx.steps - self._first, 0))

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss, and each of the others whose weight is not 0, distillation once it has begun."""
        options, losses = self.options, super().losses(forward, batch, ctx)
        if options.unimodal_weight:
            alone = zip(forward.unimodal, unimodal_losses(forward, batch.labels).items(), strict=True)
            losses |= {name: options.unimodal_weight * self.omega[m] * loss for m, (name, loss) in alone}
        distils = options.distillation_weight and ctx.steps >= self._first
        if not (options.contrast_weight or distils):
            return losses
        projected = _projected(ctx.model, forward.features, ctx)
        if options.contrast_weight:
            contrast = supervised_contrast(list(projected.values()), batch.labels, options.temperature)
            losses["contrast"] = options.contrast_weight * contrast
        if distils:
            pairs = math.perm(len(projected), 2)
            shares = own_shares((pairs, len(batch)), options.mixture_beta, ctx.stream("mixtures"))
            taught = self._taught(forward, batch, ctx)
            apart = distillation(projected, taught, list(shares.to(batch.labels.device)), self.omega)
            losses["distillation"] = options.distillation_weight * apart
        return losses

    @torch.no_grad()
    def _taught(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the teacher's unit vectors `(B, d)` of a batch."""
        teacher = _teacher(ctx.model).model.eval()  # whatever the student's mode
        with ctx.run.autocast():
            encoded = teacher.encode(batch.inputs)
        return _projected(teacher, {m: values.to(forward.features[m]) for m, values in encoded.items()}, ctx)

    def supervises(self, loss: str) -> bool:
        """Return whether it is the fused or a unimodal loss."""
        return loss == "fused" or loss.startswith("unimodal ")

    def predict(self, model: MultimodalModel, batch: Batch) -> Prediction:
        """Return the answer of whoever is judged."""
        return super().predict(_teacher(model).model if self.options.judged == "teacher" else model, batch)

    def expected_passes(self, plan: Plan) -> Passes:
        """Return joint training's passes, and a forward pass of the teacher in every step that distils."""
        if not self.options.distillation_weight:
            return Passes()
        epochs, steps = divmod(self._first_averaged(plan.train, plan), math.ceil(plan.train / plan.batch_size))
        before = epochs * plan.train + steps * plan.batch_size
        return Passes(2 - before / (plan.epochs * plan.train), 1)


def _teacher(model: MultimodalModel) -> MovingAverage:
    return cast(MovingAverage, model.teacher)


def _projected(model: MultimodalModel, features: Mapping[str, Tensor], ctx: Context) -> dict[str, Tensor]:
    """Return the unit vectors `(B, d)` of features `(B, d_m)`, from a model's projections."""
    heads = cast(nn.ModuleDict, model.projections)
    return {m: functional.normalize(applied(heads[m], values, ctx), dim=1) for m, values in features.items()}
