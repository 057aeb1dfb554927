"""GMD: the losses of all modality subsets, with conflicts between their gradients projected away.

Wang, Luo, Hu, Zhang, AAAI 2024. The paper averages per-modality logits over a subset of the modalities; with one fused
head a subset is the fused logits of its features, zeros in place of the others. Its Dynamic Sharing, one backbone for
all modalities, does not apply to separate encoders.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.gradients import NEGLIGIBLE_SQUARE, inner
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, reading, total

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

Key = TypeVar("Key", bound=Hashable)
Subsets = Literal["all", "single"]
Merge = Literal["released", "sum"]
SHARED = ""
"""Stands in the place of a modality's name for the parameters of fusion and head."""


def subsets(modalities: Sequence[str], which: Subsets = "all") -> list[tuple[str, ...]]:
    """Return the non-empty subsets of the modalities, the largest first, or the single modalities alone."""
    sizes: Iterable[int] = range(len(modalities), 0, -1) if which == "all" else (1,)
    return [subset for size in sizes for subset in combinations(modalities, size)]


def visiting_orders(count: int, *, itself: bool, generator: torch.Generator | None = None) -> Tensor:
    """Return the gradients that each of `count` gradients meets, in turn: `(S, S)`, without itself `(S, S - 1)`.

    By number, or at random with a generator.
    """
    own = torch.arange(count)
    orders = own.repeat(count, 1) if generator is None else torch.rand(count, count, generator=generator).argsort(1)
    return orders if itself else orders[orders != own[:, None]].view(count, count - 1)


def projection_coefficients(gram: Tensor, orders: Tensor) -> Tensor:
    """Return C `(S, S)`, float64: v_S = sum_k C_Sk g_k after projecting every gradient along its row of `orders`.

    v_S starts as g_S and loses its component along the original g_j wherever <v_S, g_j> < 0. All that decides this are
    the inner products `gram` `(S, S)` of the gradients, so the projected vectors themselves are never needed.
    """
    gram = gram.double()
    own = torch.arange(len(gram), device=gram.device)
    squares = gram.diagonal().clamp_min(NEGLIGIBLE_SQUARE)
    coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for met in orders.to(gram.device).T:
        inner = (coefficients * gram[met]).sum(1)
        coefficients[own, met] -= inner.clamp_max(0) / squares[met]
    return coefficients


def combine_(gradients: Sequence[Mapping[Key, Tensor]], orders: Tensor, merge: Merge = "released") -> dict[Key, Tensor]:
    """Turn each loss's gradients, in which a parameter it does not reach is missing, into the update by parameter.

    In place: the update lies in the tensors of the first loss that reaches a parameter. All parameters form one vector,
    with zeros for the missing ones. "released" averages the projected gradients where every loss reaches the parameter,
    and sums them elsewhere; "sum" sums them everywhere.
    """
    like = {key: value for given in gradients for key, value in given.items()}
    groups: dict[tuple[int, ...], list[Key]] = {}
    for key in like:
        groups.setdefault(tuple(k for k, given in enumerate(gradients) if key in given), []).append(key)
    # Zeros add nothing to an inner product: a group of parameters has one row of tensors per loss that reaches it.
    rows = {reached: {k: [gradients[k][key] for key in keys] for k in reached} for reached, keys in groups.items()}
    gram = next(iter(like.values())).new_zeros(len(gradients), len(gradients))
    for row in rows.values():
        for i, j in combinations_with_replacement(row, 2):
            gram[i, j] += inner(row[i], row[j])
    gram += gram.triu(1).T
    weights = projection_coefficients(gram, orders).sum(0).to(gram)
    merged: dict[Key, Tensor] = {}
    for reached, row in rows.items():
        shared = merge == "released" and len(reached) == len(gradients)
        own = (weights / len(gradients) if shared else weights).unbind()
        first, *others = reached
        update = row[first]
        torch._foreach_mul_(update, own[first])
        for k in others:
            torch._foreach_addcmul_(update, row[k], [own[k]] * len(update))
        merged.update(zip(groups[reached], update, strict=True))
    return merged


class GMD(Method):
    """Trains the fused logits of every modality subset; projects away what conflicts between their gradients."""

    info = MethodInfo(
        title="GMD",
        paper="Wang, Luo, Hu, Zhang: Gradient-Guided Modality Decoupling for Missing-Modality Robustness",
        venue="AAAI 2024",
        arxiv="2402.16318",
        origin="HaoWang420/Gradient-guided-Modality-Decoupling @ 90e482f9f98a4e967f09e46c95c207ed7eb6fd30",
        licence="none stated",
        category="conflict",
        interventions=frozenset({Intervention.LOSS, Intervention.PARAMETER_GRADIENT}),
        changes=frozenset({"encoders", "fusion", "head"}),
        passes=Passes(1, 2),
    )

    class Options(MethodOptions):
        """Which losses, and how their projected gradients become one."""

        subsets: Subsets = reading(
            "all",
            "Losses of `all` non-empty subsets of the modalities, or of each `single` one: the command in the official "
            "code until September 2024, after the paper, which never trains the fused logits of all. Default "
            "`all`: current code and the paper's figure; what made the published numbers is not established.",
        )
        merge: Merge = reading(
            "released",
            "`released`: the code averages a parameter's projected gradients where every loss reaches it and sums them "
            "elsewhere, and a gradient also meets itself. So the head's step is as many times smaller as there are "
            "losses. `sum`: PCGrad's definition, which the code cannot be asked for. Default `released`: it is "
            "what ran.",
        )

    options: Options

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the cross-entropy of every subset's fused logits."""
        # A modality outside the subset enters as fresh zeros: its encoder then has no gradient, rather than a zero one.
        return {
            "+".join(subset): functional.cross_entropy(
                forward.model.classify({m: forward.features[m] for m in subset}), batch.labels
            )
            for subset in subsets(forward.model.modalities, self.options.subsets)
        }

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch: one forward, one backward per loss, one update of all parameters together."""
        forward = ctx.forward(batch)
        losses = self.losses(forward, batch, ctx)
        shared = {
            (SHARED, f"{part}.{name}"): parameter
            for part, module in (("fusion", ctx.model.fusion), ("head", ctx.model.head))
            for name, parameter in module.named_parameters()
        }
        apart: list[dict[tuple[str, str], Tensor]] = []
        for loss in losses.values():
            found = torch.autograd.grad(loss, list(shared.values()), retain_graph=True, allow_unused=True)
            # Copies, to be changed in place: `torch.autograd.grad` may give two parameters the same tensor.
            apart.append({key: value.clone() for key, value in zip(shared, found, strict=True) if value is not None})
        features = ctx.feature_gradients_per_loss(forward, losses)
        for given, gradients in zip(apart, features.values(), strict=True):
            for modality, named in ctx.encoder_gradients(forward, gradients).items():
                given.update({(modality, name): value for name, value in named.items()})
        released = self.options.merge == "released"
        orders = visiting_orders(len(apart), itself=released, generator=ctx.generator)
        merged = combine_(apart, orders, self.options.merge)
        encoders: dict[str, dict[str, Tensor]] = {modality: {} for modality in forward.features}
        for (owner, name), gradient in merged.items():
            if owner == SHARED:
                shared[owner, name].grad = gradient
            else:
                encoders[owner][name] = gradient
        ctx.set_encoder_grads(encoders)
        ctx.update(total(losses))

    def expected_passes(self, plan: Plan) -> Passes:
        """Return one encoder backward for every subset that holds a modality."""
        return Passes(1, 2 ** (len(plan.modalities) - 1) if self.options.subsets == "all" else 1)
