"""GMP as its first author's later benchmark code reads it: two losses per modality beside the fused one.

lihongzhao99/MMDG_Benchmark applies GMP to auxiliary losses. Each modality has a linear classifier and, behind a
reversal, a projection into a discriminator that all modalities share. Its encoder and classifier get GMP's gradient
of these two, to which the fused loss's is added as it is. Confidences are those of the auxiliary heads, means over the
batch, with 1e-6 in the denominators.

Two departures. That code differentiates the domain losses with respect to the encoders alone, in two of its three
scripts, so that projections and discriminator stay as initialised; here they train. Its discriminator normalises each
modality's batch apart, which a last batch of one sample does not allow; here all modalities are one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.method import Intervention, MethodInfo, Passes, option, total, unimodal_losses
from benchmark.model import MultimodalModel, reverse
from methods.gmp import GMP, Apart, known_domains, true_confidence

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

PROJECTED, HIDDEN, DROPOUT = 512, 256, 0.5
_CLASSIFIER, _DOMAIN = "classifier ", "domain"


def ratios_of_means(
    class_confidence: Mapping[str, Tensor], domain_confidence: Mapping[str, Tensor], epsilon: float = 1e-6
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return rho, sigma and Gamma as `methods.gmp.ratios`, of means and with `epsilon` in every denominator."""
    q, c = ({name: v.mean() for name, v in values.items()} for values in (class_confidence, domain_confidence))

    def other(means: Mapping[str, Tensor], name: str) -> Tensor:
        return torch.stack([value for key, value in means.items() if key != name]).mean()

    rho = {name: q[name] / (other(q, name) + epsilon) for name in q}
    sigma = {name: other(c, name) / (c[name] + epsilon) for name in c}
    return rho, sigma, {name: rho[name] / (sigma[name] + epsilon) for name in rho}


class DomainHeads(nn.Module):
    """A projection per modality into one discriminator, behind a reversal."""

    def __init__(self, widths: Mapping[str, int], domains: int, reversal: float) -> None:
        super().__init__()
        self.reversal = reversal
        self.projections = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, PROJECTED), nn.ReLU(), nn.Dropout(DROPOUT))
                for name, width in widths.items()
            }
        )
        self.shared = nn.Sequential(
            nn.Linear(PROJECTED, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, domains)
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map features `(B, d_m)` to domain logits `(B, domains)` of each modality."""
        projected = [self.projections[name](reverse(values, self.reversal)) for name, values in features.items()]
        return dict(zip(features, self.shared(torch.cat(projected)).chunk(len(projected)), strict=True))


class GMPBench(GMP):
    """GMP on a unimodal and a domain loss of each modality, beside the fused loss (the authors' benchmark code)."""

    info = MethodInfo(
        title="GMP (benchmark code)",
        paper=GMP.info.paper,
        venue=GMP.info.venue,
        arxiv=GMP.info.arxiv,
        origin="lihongzhao99/MMDG_Benchmark @ e98e837d26288d89d1af5786bf798bf0bf840336",
        licence="none stated",
        category="both",
        interventions=frozenset({Intervention.PARAMETER_GRADIENT, Intervention.LOSS, Intervention.DOMAIN_ADVERSARY}),
        changes=frozenset({"encoders"}),
        passes=Passes(1, 3),
        min_domains=2,
    )
    adversarial: ClassVar[bool] = False

    class Options(GMP.Options):
        """GMP's, and the weights of the auxiliary losses."""

        unimodal_weight: float = option(3.0, "Weight of the unimodal losses; the benchmark's default.", ge=0)
        domain_weight: float = option(0.5, "Weight of the domain losses; the benchmark's default.", ge=0)
        domain_reversal: float = option(
            0.3, "What the reversal multiplies the domain gradient by; the benchmark's default.", ge=0
        )

    options: Options
    domain_confidence: dict[str, Tensor]

    def build(self) -> MultimodalModel:
        """Build the model with a classifier per modality and the domain heads."""
        model = self.task.build_model(unimodal_heads=True)
        model.domain_heads = DomainHeads(model.widths, len(self.task.domains), self.options.domain_reversal)
        return model

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss, and the weighted unimodal and domain losses of each modality."""
        domains, heads = known_domains(batch), ctx.model.get_submodule("domain_heads")
        with ctx.run.autocast():
            logits = {name: values.float() for name, values in heads(forward.features).items()}
        self.domain_confidence = {name: true_confidence(values.detach(), domains) for name, values in logits.items()}
        own = super().losses(forward, batch, ctx)
        for name, loss in unimodal_losses(forward, batch.labels).items():
            own[name] = self.options.unimodal_weight * loss
        for name, values in logits.items():
            own[f"{_DOMAIN} {name}"] = self.options.domain_weight * functional.cross_entropy(values, domains)
        return own

    def supervises(self, loss: str) -> bool:
        """Return whether it is a unimodal loss: the fused one is added as it is."""
        return loss.startswith("unimodal")

    def _groups(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of the unimodal and of the domain losses, and the fused one."""
        domain = {name: loss for name, loss in losses.items() if name.startswith(_DOMAIN)}
        others = {name: loss for name, loss in losses.items() if name not in domain}
        return super()._groups(others) | {"domain": total(domain)}

    def _ratios(self, forward: Forward, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], ...]:
        """Return rho, sigma and Gamma from the auxiliary heads, as they are in training."""
        q = {name: true_confidence(logits.detach(), batch.labels) for name, logits in forward.unimodal.items()}
        return ratios_of_means(q, self.domain_confidence)

    def _apart(self, forward: Forward, losses: Mapping[str, Tensor], ctx: Context) -> Apart:
        """Return the gradients of each encoder and of its classifier, which the unimodal loss alone reaches."""
        apart = super()._apart(forward, losses, ctx)
        for name, head in ctx.model.unimodal_heads.items():
            own = {
                f"{_CLASSIFIER}{key}": value.grad for key, value in head.named_parameters() if value.grad is not None
            }
            for group, values in apart.items():
                values[name] |= {key: g if group == "class" else torch.zeros_like(g) for key, g in own.items()}
        return apart

    def _write(self, gradients: Mapping[str, dict[str, Tensor]], ctx: Context) -> None:
        """Give encoders and classifiers their gradients."""
        encoders: dict[str, dict[str, Tensor]] = {name: {} for name in gradients}
        for name, values in gradients.items():
            for key, value in values.items():
                if key.startswith(_CLASSIFIER):
                    ctx.model.unimodal_heads[name].get_parameter(key.removeprefix(_CLASSIFIER)).grad = value
                else:
                    encoders[name][key] = value
        super()._write(encoders, ctx)
