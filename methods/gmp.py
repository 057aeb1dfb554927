"""GMP: each encoder's class and domain gradients are scaled apart, then projected where they conflict.

Li, Shen, Li, Xu, Khan: "Balancing Multimodal Domain Generalization via Gradient Modulation and Projection", AAAI 2026;
equation numbers are the paper's. Each modality m has two gradients in its encoder, g_c of the class loss and
g_d = -lambda grad L_d of the domain loss, which the reversal in front of the discriminator has turned around already,
and two confidences per sample, q in the true class and c in the true domain. With ^ for the other modality,

    rho = sum q / sum q^        sigma = sum c^ / sum c        Gamma = rho / sigma                (Eq. 8)
    k = 1 - tanh(alpha_k rho) if rho > 1, else 1;             p alike from alpha_p and sigma     (Eqs. 9, 10)

IGDM takes k g_c and p g_d (Eq. 11). Where these conflict, CAGP removes from the stronger task's gradient, the class's
if Gamma > 1 and the domain's if Gamma < 1, its component along the other (Eqs. 12 to 15).

What the paper leaves open: with more than two modalities, the other one's sum is the mean of the others' sums. Gamma
= 1 projects nothing. Eq. 6 supposes a linear head: q and c come from head and discriminator with the other modalities'
features zeroed, biases included, dropout off. Discriminator, heads and fusion descend their plain gradients. Around
another method, its class losses are one gradient, and its other losses are added to the result as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmark.errors import UsageError, check_choice
from benchmark.gradients import conflict, inner
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, option, reading, total
from benchmark.model import MultimodalModel

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

Igdm = Literal["igdm_only", "unified_modulation", "igdm_without_k", "igdm_without_p"]
Cagp = Literal["cagp_only", "fixed_projection_class", "fixed_projection_domain", "pcgrad", "reverse_cagp"]
Variant = Literal["full", Igdm, Cagp]
Form = Literal["printed", "continuous"]
Scalar = TypeVar("Scalar", float, Tensor)
Flag = bool | Tensor
Apart = dict[str, dict[str, dict[str, Tensor]]]  # gradients by group of losses, modality and parameter


class Rule(NamedTuple):
    """A row of Table 4: what scales both gradients, and which of them is projected at a given Gamma."""

    class_scale: Literal["k", "one"]
    domain_scale: Literal["p", "k", "one"]
    projects: Callable[[float | Tensor], tuple[Flag, Flag]]


RULES: Mapping[Variant, Rule] = {
    "full": Rule("k", "p", lambda gamma: (gamma > 1, gamma < 1)),
    "igdm_only": Rule("k", "p", lambda _: (False, False)),
    "cagp_only": Rule("one", "one", lambda gamma: (gamma > 1, gamma < 1)),
    "unified_modulation": Rule("k", "k", lambda _: (False, False)),
    "igdm_without_k": Rule("one", "p", lambda _: (False, False)),
    "igdm_without_p": Rule("k", "one", lambda _: (False, False)),
    "fixed_projection_class": Rule("one", "one", lambda _: (True, False)),
    "fixed_projection_domain": Rule("one", "one", lambda _: (False, True)),
    "pcgrad": Rule("one", "one", lambda _: (True, True)),
    "reverse_cagp": Rule("one", "one", lambda gamma: (gamma < 1, gamma > 1)),
}


def _over_others(confidence: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each modality's batch sum over the mean of the others' sums, 0-d."""
    sums = {name: values.sum() for name, values in confidence.items()}
    others = {name: [value for other, value in sums.items() if other != name] for name in sums}
    return {name: value * len(others[name]) / torch.stack(others[name]).sum() for name, value in sums.items()}


def ratios(
    class_confidence: Mapping[str, Tensor], domain_confidence: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return rho, sigma and Gamma = rho / sigma, 0-d and by modality, from confidences `(B,)` (Eq. 8).

    Raises UsageError for fewer than two modalities, or if the two mappings do not name the same ones.
    """
    if len(class_confidence) < 2 or class_confidence.keys() != domain_confidence.keys():
        raise UsageError(
            f"GMP needs two or more modalities in both. Found {[*class_confidence]} and {[*domain_confidence]}."
        )
    rho = _over_others(class_confidence)
    sigma = {name: 1 / value for name, value in _over_others(domain_confidence).items()}
    return rho, sigma, {name: rho[name] / sigma[name] for name in rho}


def coefficient(ratio: Scalar, alpha: float, form: Form = "printed") -> Scalar:
    """Return 1 - tanh(alpha ratio) if ratio > 1, else 1 (Eqs. 9, 10); `continuous` has ratio - 1 inside (ours)."""
    check_choice("form", form, Form)
    value = ratio if isinstance(ratio, Tensor) else torch.tensor(ratio, dtype=torch.float64)
    argument = value if form == "printed" else value - 1
    result = torch.where(value > 1, 1 - torch.tanh(alpha * argument), 1.0)
    return result if isinstance(ratio, Tensor) else float(result)


class Products(NamedTuple):
    """Inner products, 0-d, of one encoder's class and reversed domain gradient: all that IGDM and CAGP ask of them."""

    mixed: Tensor
    class_square: Tensor
    domain_square: Tensor

    @classmethod
    def of(cls, own: Sequence[Tensor], domain: Sequence[Tensor]) -> Products:
        """Return those of two gradients that lie in tensors of the same shapes."""
        return cls(inner(own, domain), inner(own, own), inner(domain, domain))


def combination(
    products: Products,
    *,
    k: float | Tensor,
    p: float | Tensor,
    gamma: float | Tensor,
    variant: Variant = "full",
) -> tuple[Tensor, Tensor]:
    """Return what the class and the reversed domain gradient are multiplied by, 0-d, before they are added.

    The result is k (g_c - f g_d) + p (g_d - f' g_c), with f and f' the projections (Eqs. 11 to 15). Raises UsageError
    for an unknown variant.
    """
    check_choice("variant", variant, Variant)
    rule = RULES[variant]
    scales: dict[str, float | Tensor] = {"k": k, "p": p, "one": 1.0}
    own, domain = scales[rule.class_scale], scales[rule.domain_scale]
    class_projected, domain_projected = rule.projects(gamma)
    along_domain = conflict(products.mixed, products.domain_square) * class_projected
    along_class = conflict(products.mixed, products.class_square) * domain_projected
    return own - domain * along_class, domain - own * along_domain


def modulate(
    class_gradient: Tensor,
    domain_gradient: Tensor,
    *,
    k: float | Tensor,
    p: float | Tensor,
    gamma: float | Tensor,
    variant: Variant = "full",
) -> Tensor:
    """Return one encoder's gradient `(P,)` from those of the class and of the reversed domain loss (Eqs. 11 to 15).

    Scaling before or after the projection is the same for k, p > 0. It comes after, because tanh saturates: a
    coefficient of 0 would leave nothing to project on. Raises UsageError for unequal shapes or an unknown variant.
    """
    if class_gradient.shape != domain_gradient.shape or class_gradient.dim() != 1:
        shapes = f"{tuple(class_gradient.shape)} and {tuple(domain_gradient.shape)}"
        raise UsageError(f"GMP combines two gradients of one shape (P,). Found {shapes}.")
    products = Products.of([class_gradient], [domain_gradient])
    own, domain = combination(products, k=k, p=p, gamma=gamma, variant=variant)
    return own * class_gradient + domain * domain_gradient


def true_confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the probability of each sample's target `(B,)`, float64, from logits `(B, C)` (Eqs. 6, 7)."""
    return logits.double().softmax(1).gather(1, targets[:, None]).squeeze(1)


@torch.no_grad()
def confidences(
    model: MultimodalModel, features: Mapping[str, Tensor], labels: Tensor, domains: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each modality's class and domain confidence `(B,)` with the others' features `(B, d_m)` zeroed."""
    with model.heads_in_evaluation():
        alone = {name: {name: values} for name, values in features.items()}
        own = {name: true_confidence(model.classify(part), labels) for name, part in alone.items()}
        return own, {name: true_confidence(model.domain_logits(part), domains) for name, part in alone.items()}


def known_domains(batch: Batch) -> Tensor:
    """Return the domain of every sample `(B,)`; raises UsageError for a batch without."""
    if batch.domains is None:
        raise UsageError("GMP needs the domain of every training sample. Found a batch without domains.")
    return batch.domains


class GMP(Method):
    """Class and domain gradients of each encoder, scaled by confidence and projected where they conflict."""

    info = MethodInfo(
        title="GMP",
        paper="Li, Shen, Li, Xu, Khan: Balancing Multimodal Domain Generalization via Gradient Modulation and "
        "Projection",
        venue="AAAI 2026",
        arxiv="2603.14175",
        origin="not found",
        licence="no code published",
        category="both",
        interventions=frozenset({Intervention.PARAMETER_GRADIENT, Intervention.DOMAIN_ADVERSARY}),
        changes=frozenset({"encoders", "fusion"}),
        passes=Passes(1, 2),
        min_domains=2,
    )

    class Options(MethodOptions):
        """Strengths, the row of Table 4, and a reading."""

        alpha_k: float = option(0.5, "Cut of who is ahead on classes; tuned in [0, 1], not printed.", ge=0, le=1)
        alpha_p: float = option(0.5, "Cut of who hides the domain better; tuned in [0, 1] too.", ge=0, le=1)
        variant: Variant = reading(
            "full",
            "Rows of Table 4; its `full_igdm` and `full_cagp` are `igdm_only` and `cagp_only`, repeated at the end of "
            "their ablations. Variants of IGDM project nothing; those of CAGP have k = p = 1. `unified_modulation`: "
            "k scales both gradients, as in OGM-GE (our reading). Default `full`: the method.",
        )
        coefficient: Form = reading(
            "printed",
            "Eqs. 9 and 10 drop from 1 to 1 - tanh(alpha) just above ratio 1, so that of two modalities one is always "
            "cut by that much. `continuous` (ours): 1 - tanh(alpha (ratio - 1)). Default `printed`: the paper.",
        )

    options: Options

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch: one forward, an encoder backward for each of class, domain and auxiliary losses."""
        forward = ctx.forward(batch)
        losses = self.losses(forward, batch, ctx)
        scales = self._scales(forward, batch, ctx)
        apart = self._apart(forward, losses, ctx)
        written = {name: self._modulated(name, apart, scales[name], ctx) for name in apart["class"]}
        self._write(written, ctx)
        ctx.update(total(losses))

    def _modulated(
        self, modality: str, apart: Apart, scales: tuple[Tensor, Tensor, Tensor], ctx: Context
    ) -> dict[str, Tensor]:
        """Return one encoder's gradients, and note whether they conflicted.

        Tensor by tensor: joined into one vector as `modulate` takes it, they would cost as much as a backward pass.
        """
        k, p, gamma = scales
        values = {group: list(gradients[modality].values()) for group, gradients in apart.items()}
        products = Products.of(values["class"], values["domain"])
        ctx.note(f"share of conflicts, {modality}", (products.mixed < 0).double())
        own, domain = combination(products, k=k, p=p, gamma=gamma, variant=self.options.variant)
        whole = values["class"]
        torch._foreach_mul_(whole, own)
        torch._foreach_addcmul_(whole, values["domain"], [domain.to(products.mixed.dtype)] * len(whole))
        if "auxiliary" in values:
            torch._foreach_add_(whole, values["auxiliary"])
        return apart["class"][modality]

    def _apart(self, forward: Forward, losses: Mapping[str, Tensor], ctx: Context) -> Apart:
        """Return each encoder's gradients of the groups of losses, zeros where a group does not reach one."""
        found = ctx.feature_gradients_per_loss(forward, self._groups(losses), domain_apart=True)
        unreached = {name: torch.zeros_like(values) for name, values in forward.features.items()}
        return {group: ctx.encoder_gradients(forward, unreached | values) for group, values in found.items()}

    def _write(self, gradients: Mapping[str, dict[str, Tensor]], ctx: Context) -> None:
        """Give the parameters of each modality their gradients."""
        ctx.set_encoder_grads(gradients)

    def _groups(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of the losses that teach the classes and, if there are any, of the others."""
        teaching = {name: loss for name, loss in losses.items() if self.supervises(name)}
        others = {name: loss for name, loss in losses.items() if name not in teaching}
        return {"class": total(teaching)} | ({"auxiliary": total(others)} if others else {})

    def _scales(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return and note k, p and Gamma, 0-d, of every modality."""
        rho, sigma, gamma = self._ratios(forward, batch, ctx)
        result = {}
        for name in rho:
            k = coefficient(rho[name], self.options.alpha_k, self.options.coefficient)
            p = coefficient(sigma[name], self.options.alpha_p, self.options.coefficient)
            for what, value in (("log rho", rho[name].log()), ("log sigma", sigma[name].log()), ("k", k), ("p", p)):
                ctx.note(f"{what}, {name}", value)
            result[name] = k, p, gamma[name]
        return result

    def _ratios(self, forward: Forward, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], ...]:
        """Return rho, sigma and Gamma, 0-d, of every modality."""
        with ctx.run.autocast():
            return ratios(*confidences(ctx.model, forward.features, batch.labels, known_domains(batch)))

    def expected_passes(self, plan: Plan) -> Passes:
        """Return one backward each for class and domain, and one more around a method that has auxiliary losses."""
        return Passes(1, 2 if type(self).supervises is Method.supervises else 3)
