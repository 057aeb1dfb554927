"""Reconcile Gradient Modulation: feature gradients rescaled and rotated by balance and conflict.

Gao, Cao, Gong, Zhu, AAAI 2026; equation numbers are the paper's. For every ordered pair of modalities (i, j),
with g = dL/dz `(B, d)` of the fused loss and blocks k of its columns,

    g_i|j = rt_i * concat_k[ gamma_l P_i^(k) + (1 - gamma_l) g_i^(k) ] + (1 - gamma_g) O_i        (Eq. 15)

A modality's new gradient is the mean of g_i|j over its partners. It combines g_i's blocks with g_j, so only
coefficients are computed, once for both directions of a pair: in tensors `(2, ...)`, first i's, then j's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from benchmark.errors import UsageError, check_choice
from benchmark.gradients import NEGLIGIBLE_SQUARE
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading
from benchmark.plane import accumulate, balance_factor, non_conflict, shares

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

Component = Literal["ear", "syn", "orth"]
Orthogonalisation = Literal["consistent", "printed", "exact"]
Gate = Literal["printed", "clamped"]
Granularity = Literal["sample", "batch"]
OrthWhen = Literal["always", "conflict"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
_MODULATION = {"blocks", "orthogonalisation", "components", "gate", "granularity", "orth_when"}


def energy_rates(energies: Tensor) -> Tensor:
    """Return r = mean energy / E `(M,)` (Eq. 7); 1 where E is zero, because those gradients were zero too."""
    return (energies.mean() / energies).nan_to_num(nan=1.0, posinf=1.0)


def rebalancing(rate: Tensor, cosine: Tensor) -> Tensor:
    """Return EAR's factor r^((1 + c) / 2): none at c = -1, all of r at c = 1 (Eq. 8)."""
    return rate.sqrt() ** (1 + cosine)


def synergy_scales(squares: Tensor, share: Tensor) -> Tensor:
    """Return Syn's alpha, P^(k) = alpha g^(k), from squared block norms `(2, B, l)` (Eq. 11).

    Conserves ||g_i^(k)||^2 + ||g_j^(k)||^2 and divides it by the shares `(2, 1, 1)`.
    """
    return (share * squares.sum(0)).sqrt() * squares.clamp_min(NEGLIGIBLE_SQUARE).rsqrt()


def orthogonal_step(
    dot: Tensor, squares: Tensor, share: Tensor, orthogonalisation: Orthogonalisation = "consistent"
) -> tuple[Tensor | None, Tensor]:
    """Return a `(...)`, or None for 0, and b `(2, ...)` of Orth's step O_i = a g_i + b_i g_j.

    "printed" is Eq. 13; "consistent" has w_i in its numerator; "exact" minimises Eq. 12 (our derivation):
    parallel gradients with w_i ||g_i||^2 = w_j ||g_j||^2 have no unique minimiser and are both halved.
    """
    other = share.flip(0)
    if orthogonalisation == "exact":
        relative = dot / (share * squares).sum(0).clamp_min(NEGLIGIBLE_SQUARE)
        root = (1 - 4 * share.prod(0) * relative.square()).clamp_min(torch.finfo(dot.dtype).eps).sqrt()
        return (1 - root) / (2 * root), -other * (relative / root)
    numerator = share if orthogonalisation == "consistent" else other
    return None, -numerator * (dot / (other * squares).sum(0).clamp_min(NEGLIGIBLE_SQUARE))


@torch.no_grad()
def modulate(
    gradients: Mapping[str, Tensor],
    energies: Mapping[str, float | Tensor],
    *,
    blocks: int = 8,
    orthogonalisation: Orthogonalisation = "consistent",
    components: Sequence[Component] = COMPONENTS,
    gate: Gate = "printed",
    granularity: Granularity = "sample",
    orth_when: OrthWhen = "always",
) -> dict[str, Tensor]:
    """Return the modulated feature gradients `(B, d)` of all modalities (Eq. 15).

    `energies` are cumulative and include this step's; only their ratios matter. Raises UsageError for fewer
    than two modalities, unequal shapes, a width not divisible by `blocks`, bad energies, an unknown reading.
    """
    for component in components:
        check_choice("component", component, Component)
    check_choice("orthogonalisation", orthogonalisation, Orthogonalisation)
    check_choice("gate", gate, Gate)
    check_choice("granularity", granularity, Granularity)
    check_choice("orth_when", orth_when, OrthWhen)
    blocks = blocks if "syn" in components else 1
    _check(gradients, energies, blocks)
    if not components:
        return dict(gradients)
    raw = torch.stack(tuple(gradients.values()))
    stack: Tensor = raw.to(torch.promote_types(raw.dtype, torch.float32))
    stack = stack.reshape(*raw.shape[:2], blocks, -1)  # (M, B, l, d / l)
    energy = torch.stack([torch.as_tensor(energies[name], dtype=torch.float64) for name in gradients])
    rates = energy_rates(energy).to(stack)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        """Return block inner products `(..., B, l)`, B = 1 for the whole batch."""
        products = (a * b).sum(-1)
        return products if granularity == "sample" else products.sum(-2, keepdim=True)

    squares = inner(stack, stack)

    def pairwise(pair: slice) -> Tensor:
        """Return g_i|j and g_j|i `(2, B, l, d / l)`."""
        both, square, dot = stack[pair], squares[pair], inner(*stack[pair])
        whole_square, whole_dot = square.sum(-1, keepdim=True), dot.sum(-1, keepdim=True)
        share = shares(energy[pair]).to(stack)[:, None, None]
        slope = 4 * balance_factor(share)  # q of Eq. 14
        if gate == "clamped":
            slope = slope.clamp_min(0)
        cosine = non_conflict(whole_dot, whole_square)
        own = torch.ones_like(whole_square)
        if "ear" in components:
            own = rebalancing(rates[pair, None, None], cosine)
        if "syn" in components:
            local_gate = torch.sigmoid(slope * non_conflict(dot, square))
            own = own * (1 + local_gate * (synergy_scales(square, share) - 1))
        if "orth" not in components:
            return own.unsqueeze(-1) * both
        weight = torch.sigmoid(-slope * cosine)  # 1 - gamma_g
        if orth_when == "conflict":
            weight = weight * (cosine < 0)
        own_step, partner_step = orthogonal_step(whole_dot, whole_square, share, orthogonalisation)
        if own_step is not None:
            own = own + weight * own_step
        return (own.unsqueeze(-1) * both).addcmul_((weight * partner_step).unsqueeze(-1), both.flip(0))

    if len(stack) == 2:
        result = pairwise(slice(0, 2))
    else:
        result = torch.zeros_like(stack)
        for i, j in combinations(range(len(stack)), 2):
            pair = slice(i, j + 1, j - i)  # a view of exactly i and j
            result[pair] += pairwise(pair) / (len(stack) - 1)
    return dict(zip(gradients, result.flatten(2).to(raw.dtype), strict=True))


def _check(gradients: Mapping[str, Tensor], energies: Mapping[str, float | Tensor], blocks: int) -> None:
    shapes = {name: tuple(gradient.shape) for name, gradient in gradients.items()}
    shape, *others = set(shapes.values()) or {()}
    if len(shapes) < 2 or others or len(shape) != 2:
        raise UsageError(f"RGM needs two or more gradients of one shape (B, d). Found {shapes}.")
    if blocks < 1 or shape[1] % blocks:
        raise UsageError(f"blocks={blocks} does not divide the feature width {shape[1]}. Choose a divisor.")
    for name in gradients:
        energy = energies.get(name, -1.0)
        if not (isinstance(energy, Tensor) or energy >= 0):  # reading a tensor would wait for the device
            raise UsageError(f"RGM needs an energy, at least 0, of {name!r}. Found {energies.get(name)}.")


class RGM(Method):
    """Feature gradients rescaled by energy, re-normed per block, and rotated apart where they conflict."""

    info = MethodInfo(
        title="RGM",
        paper="Gao, Cao, Gong, Zhu: Reconcile Gradient Modulation for Harmony Multimodal Learning",
        venue="AAAI 2026",
        arxiv=None,
        origin="not found",
        licence="no code published",
        category="both",
        interventions=frozenset({Intervention.FEATURE_GRADIENT}),
        changes=frozenset({"encoders"}),
        equal_widths=True,
    )
    noop: ClassVar[Mapping[str, object]] = {"components": ()}

    class Options(MethodOptions):
        """Components and readings."""

        components: tuple[Component, ...] = reading(
            COMPONENTS,
            "Rows of Table 3, whose ticks are one row off. No `ear`: factor 1; no `syn`: blocks keep their "
            "norms; no `orth`: nothing of the partner is added. Default all: the method.",
        )
        blocks: int = option(8, "Blocks l per gradient. Not in the paper; 8 divides all usual widths.", ge=1)
        orthogonalisation: Orthogonalisation = reading(
            "consistent",
            "Eq. 13 as `printed` does not solve Eq. 12: it can turn a cosine of -0.5 into +0.9. `consistent` "
            "has w_i in its numerator. `exact`: Eq. 12's minimiser; the dominant modality is rotated less. "
            "Default `consistent`: orthogonal to first order, fits the prose and the printed denominator.",
        )
        gate: Gate = reading(
            "printed",
            "The slope q of Eq. 14 is negative beyond a share of 0.854; conflict then gets less Orth. "
            "`clamped`: max(q, 0). Default `printed`: the paper clamps nothing.",
        )
        orth_when: OrthWhen = reading(
            "always",
            "Orth is derived for c < 0, but Eq. 15 has no such indicator; `conflict` adds it. Default "
            "`always`: Eq. 15, and the text claims to need no hard threshold.",
        )
        granularity: Granularity = reading(
            "sample",
            "Cosines, blocks and O per sample, or of the `batch` as one vector, where a block has the same "
            "columns of every sample. Default `sample`: g has d entries in Eq. 1, and Fig. 3 plots samples.",
        )
        energy: Literal["raw", "modulated"] = reading(
            "raw",
            "Gradients that Eq. 3 accumulates; `modulated` ends at a smaller ratio. Default `raw`: Fig. 2.",
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.energies: dict[str, Tensor | float] = dict.fromkeys(task.modalities, 0.0)

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return why the encoders' widths do not fit: RGM needs one width, which the blocks divide."""
        refusal, width = super().refuses(options, task), max(task.widths.values())
        if refusal is None and "syn" in options.components and width % options.blocks:
            return f"blocks={options.blocks} does not divide the feature width {width}; choose a divisor"
        return refusal

    def modulate_features(
        self, gradients: dict[str, Tensor], forward: Forward, batch: Batch, ctx: Context
    ) -> dict[str, Tensor]:
        """Accumulate energies at the current learning rate; modulate all modalities' gradients `(B, d)`."""
        if self.options.energy == "raw":
            self._accumulate(gradients, ctx.lr)
        modulated = modulate(gradients, self.energies, **self.options.model_dump(include=_MODULATION))
        if self.options.energy == "modulated":
            self._accumulate(modulated, ctx.lr)
        return modulated

    def _accumulate(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        for name, gradient in gradients.items():
            self.energies[name] = accumulate(self.energies[name], gradient, learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """Return the energies."""
        return {"energies": {name: float(energy) for name, energy in self.energies.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the energies."""
        self.energies = dict(state["energies"])
