"""MMPareto: Pareto weights for each encoder's multimodal and unimodal gradient, with the norm restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from benchmark.gradients import NEGLIGIBLE_NORM, NEGLIGIBLE_SQUARE
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


def pareto_weight(multimodal: Tensor, unimodal: Tensor, product: Tensor) -> Tensor:
    """Return the multimodal gradient's share, 0-d: 1/2 if the gradients agree, else the min-norm weight.

    `multimodal` and `unimodal` are their squared norms, `product` is their inner product, all 0-d.
    """
    spread = multimodal + unimodal - 2 * product
    share = ((unimodal - product) / spread.clamp_min(NEGLIGIBLE_SQUARE)).clamp(0.0, 1.0)
    # A zero gradient conflicts with nothing, and its min-norm weight of 1 would silence the other one. (The
    # official solver stops at 0.999, and its norm correction then gives back the same plain sum.)
    plain = (product > 0) | (multimodal == 0) | (unimodal == 0) | (spread <= NEGLIGIBLE_SQUARE)
    return torch.where(plain, 0.5, share)


def factors(
    multimodal: Tensor, unimodal: Tensor, product: Tensor, *, gamma: float = 1.5, rescale: Rescale = "tensor"
) -> tuple[Tensor, Tensor]:
    """Return what each tensor of the multimodal and of the unimodal gradient is multiplied by, `(n,)` each.

    Their sum is the Pareto direction with at least the norm of the plain sum, times gamma. `multimodal` and `unimodal`
    are squared norms of an encoder's n tensors `(n,)`, `product` their inner products: norms of sums follow from these.
    """
    share = pareto_weight(multimodal.sum(), unimodal.sum(), product.sum())
    own, other = 2 * share, 2 * (1 - share)
    plain = multimodal + unimodal + 2 * product
    mixed = own * own * multimodal + other * other * unimodal + 2 * own * other * product
    if rescale == "encoder":
        plain, mixed = plain.sum().expand_as(plain), mixed.sum().expand_as(mixed)
    scale = gamma * _norm_ratio(plain.clamp_min(0).sqrt(), mixed.clamp_min(0).sqrt())
    return own * scale, other * scale


def combine_(
    multimodal: Sequence[Tensor], unimodal: Sequence[Tensor], *, gamma: float = 1.5, rescale: Rescale = "tensor"
) -> list[Tensor]:
    """Turn the multimodal gradient of one encoder into its update, in place; both are tensors of the same shapes."""
    update, others = list(multimodal), list(unimodal)
    products = (_products(a, b) for a, b in ((update, update), (others, others), (update, others)))
    own, other = factors(*products, gamma=gamma, rescale=rescale)
    torch._foreach_mul_(update, list(own.unbind()))
    torch._foreach_addcmul_(update, others, list(other.unbind()))
    return update


def _products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return each pair's inner product `(n,)`."""
    return torch.stack([torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in zip(a, b, strict=True)])


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
        combine_(list(fused.values()), list(unimodal.values()), gamma=self.options.gamma, rescale=self.options.rescale)
        return fused
