"""BalGrad: unimodal predictions pulled together by a reweighted divergence that the fused loss may not work against.

Kwon, Kim, Lee, Choi, Kim: "See-Saw Modality Balance: See Gradient, and Sew Impaired Vision-Language Balance to
Mitigate Dominant Modality Bias", NAACL 2025. The paper's captions say which gradient reaches which layer; its method
section was not at hand, so weights, divergence and projection are this suite's reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.gradients import conflict, inner
from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    Passes,
    option,
    reading,
    total,
    unimodal_losses,
)
from benchmark.model import MultimodalModel

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

Weights = Literal["own", "others", "norm", "equal"]
Scope = Literal["stacked", "encoder", "none"]
Gradients = Mapping[str, Mapping[str, Tensor]]
"""By modality and parameter name."""


def divergences(logits: Mapping[str, Tensor], *, attached: bool = False) -> dict[str, Tensor]:
    """Return each modality's KL(mean prediction of the others || own prediction), batch mean, from logits `(B, C)`.

    The others are constants, so that a modality's divergence moves that modality alone; `attached` moves them too.
    """
    logs = {m: values.log_softmax(1) for m, values in logits.items()}
    result = {}
    for name, own in logs.items():
        others = torch.stack([values for m, values in logs.items() if m != name])
        target = others.logsumexp(0) - math.log(len(others))
        result[name] = functional.kl_div(
            own, target if attached else target.detach(), reduction="batchmean", log_target=True
        )
    return result


def shares(values: Mapping[str, Tensor], *, of_others: bool = False) -> dict[str, Tensor]:
    """Return lambda_m = value_m / sum of values, scalars without gradient; equal shares where all values are 0.

    `of_others`: the mean share of the other modalities instead.
    """
    stacked = torch.stack([value.detach() for value in values.values()])
    share = (stacked / stacked.sum()).nan_to_num(1 / len(stacked))
    return dict(zip(values, (1 - share) / (len(stacked) - 1) if of_others else share, strict=True))


def opposition(task: Sequence[Tensor], divergence: Sequence[Tensor]) -> Tensor:
    """Return the f of the component f * divergence, 0-d, that the task gradient has against the divergence's, else 0.

    Both are one vector over all tensors.
    """
    return conflict(inner(task, divergence), inner(divergence, divergence))


def combine_(
    fused: Gradients, unimodal: Gradients, divergence: Gradients, scope: Scope = "stacked"
) -> dict[str, dict[str, Tensor]]:
    """Turn the fused gradients, in place, into projected fused + unimodal + divergence gradient of every encoder.

    One projection over the "stacked" encoders, one within each "encoder", or "none".
    """
    for group in [list(fused)] if scope == "stacked" else [[name] for name in fused]:
        first, second, third = (
            [source[m][p] for m in group for p in fused[m]] for source in (fused, unimodal, divergence)
        )
        kept = first[0].new_ones(()) if scope == "none" else 1 - opposition(first, third)
        torch._foreach_add_(first, second)
        # What is taken from the fused gradient and the divergence's own lie along one vector.
        torch._foreach_addcmul_(first, third, [kept] * len(first))
    return {name: dict(values) for name, values in fused.items()}


class BalGrad(Method):
    """Adds unimodal losses and a divergence between predictions, and turns the fused gradient where it disagrees."""

    info = MethodInfo(
        title="BalGrad",
        paper="Kwon, Kim, Lee, Choi, Kim: See-Saw Modality Balance: See Gradient, and Sew Impaired Vision-Language "
        "Balance to Mitigate Dominant Modality Bias",
        venue="NAACL 2025",
        arxiv="2503.13834",
        origin="not found",
        licence="none",
        category="both",
        interventions=frozenset({Intervention.LOSS, Intervention.PARAMETER_GRADIENT}),
        changes=frozenset({"encoders"}),
        passes=Passes(1, 3),
    )
    noop: ClassVar[Mapping[str, object]] = {"unimodal_weight": 0.0, "divergence_weight": 0.0}

    class Options(MethodOptions):
        """Weights of the losses, and readings of what could not be read."""

        unimodal_weight: float = option(1.0, "Weight of every modality's own loss (the paper's: not found).", ge=0)
        divergence_weight: float = option(1.0, "Weight of the divergences' sum (the paper's: not found).", ge=0)
        weights: Weights = reading(
            "own",
            "Which share scales a modality's divergence. `own`: its share of the unimodal losses; `others`: that of "
            "the others; `norm`: the others' share of the norms of the divergences' feature gradients; `equal`: the "
            "ablation without reweighting. Default `own`: the modality that has learnt less is pulled more, which "
            "fits the reported effect, unimodal losses that come together; the formula was not found.",
        )
        targets: Literal["detached", "attached"] = reading(
            "detached",
            "Whether a divergence also moves the modality that it is measured from. Default `detached`: the captions "
            "give each modality one gradient of its own; the definition was not found.",
        )
        projection: Scope = reading(
            "stacked",
            "What the fused loss's gradient is compared with: the divergences' over all encoders as one vector "
            "(`stacked`), or `encoder` by encoder; `none` is the ablation. Default `stacked`: the captions have one "
            "g_T and one g_kl.",
        )

    options: Options

    def build(self) -> MultimodalModel:
        """Build the model with a head per modality."""
        return self.task.build_model(unimodal_heads=True)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss, the sum of unimodal losses and the weighted sum of divergences."""
        own = dict(zip(forward.unimodal, unimodal_losses(forward, batch.labels).values(), strict=True))
        apart = divergences(forward.unimodal, attached=self.options.targets == "attached")
        factors = self._factors(own, apart, forward)
        return super().losses(forward, batch, ctx) | {
            "unimodal": self.options.unimodal_weight * total(own),
            "divergence": self.options.divergence_weight * total({m: factors[m] * apart[m] for m in apart}),
        }

    def _factors(self, own: dict[str, Tensor], apart: dict[str, Tensor], forward: Forward) -> dict[str, Tensor]:
        """Return the factor lambda_m of each divergence."""
        if self.options.weights == "equal":
            return shares({m: torch.zeros_like(loss) for m, loss in own.items()})
        if self.options.weights == "norm":
            features = forward.features
            own = {m: torch.autograd.grad(loss, features[m], retain_graph=True)[0].norm() for m, loss in apart.items()}
        return shares(own, of_others=self.options.weights != "own")

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch: encoders combine the gradients of three losses, heads keep those of their own."""
        forward = ctx.forward(batch)
        losses = self.losses(forward, batch, ctx)
        by_loss = ctx.feature_gradients_per_loss(forward, losses)
        gradients = {name: ctx.encoder_gradients(forward, values) for name, values in by_loss.items()}
        ctx.set_encoder_grads(combine_(**gradients, scope=self.options.projection))
        ctx.update(total(losses))
