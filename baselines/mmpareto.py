"""MMPareto: Pareto weights for each encoder's multimodal and unimodal gradient, with the norm restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from benchmark.gradients import NEGLIGIBLE_NORM, cosine, flatten, min_norm_weight
from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    Passes,
    option,
    reading,
    unimodal_losses,
)
from benchmark.model import MultimodalModel

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

Rescale = Literal["tensor", "encoder"]


def pareto_weight(multimodal: Tensor, unimodal: Tensor) -> float:
    """Return the multimodal gradient's share: 1/2 if the vectors `(P,)` agree, else the min-norm weight."""
    # A zero gradient conflicts with nothing, and its min-norm weight of 1 would silence the other one. (The
    # official solver stops at 0.999, and its norm correction then gives back the same plain sum.)
    if float(cosine(multimodal, unimodal)) > 0 or not multimodal.any() or not unimodal.any():
        return 0.5
    return min_norm_weight(multimodal, unimodal)


def combine(
    multimodal: Sequence[Tensor],
    unimodal: Sequence[Tensor],
    *,
    gamma: float = 1.5,
    rescale: Rescale = "tensor",
) -> list[Tensor]:
    """Return one encoder's update: Pareto direction, at least the norm of the plain sum, times gamma."""
    pair = list(multimodal), list(unimodal)
    share = pareto_weight(*map(flatten, pair))
    mixed = torch._foreach_mul(pair[0], 2 * share)
    torch._foreach_add_(mixed, torch._foreach_mul(pair[1], 2 * (1 - share)))
    plain = torch._foreach_add(*pair)
    if rescale == "encoder":
        ratio = _norm_ratio(flatten(plain).norm(), flatten(mixed).norm())
        return list(torch._foreach_mul(mixed, gamma * ratio))
    norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (plain, mixed))
    return list(torch._foreach_mul(mixed, (gamma * _norm_ratio(*norms)).unbind()))


def _norm_ratio(plain: Tensor, mixed: Tensor) -> Tensor:
    """Return max(1, plain / mixed) of norms; 1 where `mixed` vanishes, as in a tensor without gradient."""
    return torch.where(mixed > NEGLIGIBLE_NORM, plain / mixed, 1.0).clamp_min(1.0)


class MMPareto(Method):
    """Unimodal losses whose conflict with the fused loss is resolved inside each encoder."""

    info = MethodInfo(
        title="MMPareto",
        paper="Wei, Hu: MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance",
        venue="ICML 2024",
        arxiv="2405.17730",
        origin="GeWu-Lab/MMPareto_ICML2024 @ a339db39cc25b157df376b50bb894917dc6c01d6",
        licence="not found",
        category="both",
        interventions=frozenset({Intervention.PARAMETER_GRADIENT, Intervention.LOSS}),
        changes=frozenset({"encoders"}),
        passes=Passes(1, 2),
    )

    # Script in the repository.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"gamma": 1.5},
    }

    class Options(MethodOptions):
        """Strength of the update and where its norm is corrected."""

        gamma: float = option(1.5, "Factor on every encoder gradient, fixed in the official code.", gt=0)
        rescale: Rescale = reading(
            "tensor",
            "The norm is restored tensor by tensor (`tensor`, official code), which can turn the update away "
            "from the Pareto direction, or once per encoder (`encoder`), which keeps the paper's promise "
            "of a common descent direction. Default `tensor`: the published numbers come from the code.",
        )

    options: Options

    def build(self) -> MultimodalModel:
        """Build the model with a head per modality."""
        return self.task.build_model(unimodal_heads=True)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss and one per modality, all with weight 1."""
        return super().losses(forward, batch, ctx) | unimodal_losses(forward, batch.labels)

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch: each encoder combines two gradients, heads keep the gradient of their loss."""
        self.step_per_loss(batch, ctx)

    def combine_losses(self, modality: str, gradients: dict[str, dict[str, Tensor]], ctx: Context) -> dict[str, Tensor]:
        """Combine the gradients of the fused and the modality's own loss."""
        fused, unimodal = gradients.values()
        pair = list(fused.values()), list(unimodal.values())
        combined = combine(*pair, gamma=self.options.gamma, rescale=self.options.rescale)
        return dict(zip(fused, combined, strict=True))
