"""RNA-Net: a loss that makes the mean norms of the modalities' features equal.

Planamente, Plizzari, Alberti, Caputo: "Domain Generalization through Audio-Visual Relative Norm Alignment in First
Person Action Recognition", WACV 2022. Read from a benchmark's code; the authors' own was not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.errors import CellError
from benchmark.heads import Shares, drop_features, misnamed
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.model import MultimodalModel
    from benchmark.task import Task

Ratio = Literal["over audio", "first", "last"]


def norms_by_sample(features: Mapping[str, Tensor]) -> Tensor:
    """Return the L2 norms `(M, B)` of features `(B, d_m)`."""
    return torch.stack([torch.linalg.vector_norm(values, dim=1) for values in features.values()])


def norms_by_class(norms: Tensor, labels: Tensor) -> Tensor:
    """Return the mean norms `(M, K)` over the samples of each class that occurs in labels `(B,)`, from `(M, B)`."""
    members = functional.one_hot(labels).to(norms.dtype)
    members = members[:, members.sum(0) > 0]
    return norms @ members / members.sum(0)


def misalignment(norms: Tensor) -> Tensor:
    """Return (n_i / n_j - 1)^2 averaged over pairs of modalities, i before j, of mean norms `(M,)` or `(M, K)`.

    A pair whose n_j is zero (dead features) has no ratio and counts as aligned: our reading.
    """
    terms = []
    for above, below in combinations(norms, 2):
        alive = below > 0
        terms.append((above / below.where(alive, 1.0) - 1).square().where(alive, 0.0))
    return torch.stack(terms).mean()


def in_order(modalities: Sequence[str], ratio: Ratio) -> list[str]:
    """Return the modalities from numerator to denominator."""
    if ratio == "over audio":
        return sorted(modalities, key=lambda name: name == "audio")
    return list(modalities if ratio == "first" else reversed(modalities))


class RNANet(Method):
    """Joint training, and a loss on the ratio of the modalities' mean feature norms."""

    info = MethodInfo(
        title="RNA-Net",
        paper="Planamente, Plizzari, Alberti, Caputo: Domain Generalization through Audio-Visual Relative Norm "
        "Alignment in First Person Action Recognition",
        venue="WACV 2022",
        arxiv="2110.10101",
        origin="lihongzhao99/MMDG_Benchmark @ e98e837d26288d89d1af5786bf798bf0bf840336",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS}),
        changes=frozenset({"encoders"}),
    )
    noop: ClassVar[Mapping[str, object]] = {"alignment_weight": 0.0}
    adversarial = False

    class Options(MethodOptions):
        """Weight and readings."""

        alignment_weight: float = option(1.0, "Weight of the alignment; the benchmark's default.", ge=0)
        ratio: Ratio = reading(
            "over audio",
            "Which norm is divided by which: the loss is 1 at a ratio of 2, and 0.25 at one half. `over audio`: every "
            "other modality over audio, as in the paper's two-stream form, and else earlier ones over later ones in "
            "the dataset's order; `first`: that order alone; `last`: its reverse. Default: video over audio in code.",
        )
        norms: Literal["batch", "class"] = reading(
            "batch",
            "Means over the `batch` (WACV), or over the samples of each `class` in it, whose losses are averaged: our "
            "form of what the journal's abstract names. Default `batch`: its formula is known.",
        )
        feature_dropout: Shares = option(
            {},
            "Share of its features that a modality drops in training, before fusion and all losses. In the benchmark "
            "0.5 for video and flow, none for audio, in the backbones' heads; those here have none.",
        )

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return which dropout is for no modality of the task."""
        return misnamed(options.feature_dropout, task.modalities) or super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build the model; its encoders may drop features."""
        model = super().build()
        drop_features(model, self.options.feature_dropout)
        return model

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss and the alignment; raises CellError where features are normalised to begin with."""
        losses, order = super().losses(forward, batch, ctx), in_order(self.task.modalities, self.options.ratio)
        norms = norms_by_sample({m: forward.features[m] for m in order})
        if ctx.steps == 0 and bool(((norms - 1).abs() < 1e-3).all()):
            raise CellError("RNA-Net aligns norms of features, but all are 1: take the normalisation out of encoders.")
        for name, mean in zip(order, norms.detach().mean(1), strict=True):
            ctx.note(f"mean norm, {name}", mean)
        if self.options.alignment_weight:
            means = norms.mean(1) if self.options.norms == "batch" else norms_by_class(norms, batch.labels)
            losses["norm alignment"] = self.options.alignment_weight * misalignment(means)
        return losses

    def supervises(self, loss: str) -> bool:
        """Return whether it is the fused loss."""
        return loss == "fused"
