"""ARM: features scaled before the fusion, a modality that contributes less than the others by more.

Gao, Cao, Zhu, Wang, Hu: "Asymmetric Reinforcing against Multi-modal Representation Bias", AAAI 2025. Contributions
are histogram estimates of (conditional) mutual information between the entries of a modality's features and those of
the fused ones, in nats, times the probability of the true class. The paper's min-max loss and re-sampling are missing
from the released model, and here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.fusion import Fusion
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading
from benchmark.model import MultimodalModel, Prediction

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

SMALLEST = 1e-3
"""A contribution below this counts as this."""


def bins_of(series: Tensor, bins: int) -> Tensor:
    """Return the bin of each entry of `series` `(..., N)`, `bins` of equal width between a row's extremes; NaN: 0."""
    low, high = series.aminmax(dim=-1, keepdim=True)
    width = (high - low).clamp_min(torch.finfo(series.dtype).tiny)
    return ((series - low) / width * bins).nan_to_num_(0.0).clamp_(0, bins - 1).long()


def histogram(*series: Tensor, bins: int) -> Tensor:
    """Return the joint probabilities `(bins,) * K` of K aligned series of bins `(N,)`."""
    cells = series[0]
    for other in series[1:]:
        cells = cells * bins + other
    # Not bincount, for which a GPU would wait.
    counts = torch.zeros(bins ** len(series), dtype=torch.float64, device=cells.device)
    counts.index_add_(0, cells, torch.ones((), dtype=torch.float64, device=cells.device).expand(len(cells)))
    return counts.view([bins] * len(series)) / len(cells)


def entropy(probabilities: Tensor) -> Tensor:
    """Return -sum p log p over all entries of a tensor of any shape."""
    total: Tensor = torch.special.entr(probabilities).sum()
    return total


def _ratio(value: Tensor, scale: Tensor) -> Tensor:
    """Return value / scale, 0 where a constant series leaves no entropy to compare with."""
    return torch.where(scale.abs() > 1e-12, value / scale, 0.0)


def mutual_information(x: Tensor, y: Tensor, bins: int = 30) -> tuple[Tensor, Tensor]:
    """Return I(x; y) and 2 I(x; y) / (H(x) + H(y)) in [0, 1] of two series of bins `(N,)`."""
    joint = histogram(x, y, bins=bins)
    own = entropy(joint.sum(1)) + entropy(joint.sum(0))
    information = (own - entropy(joint)).clamp_min(0)
    return information, _ratio(2 * information, own)


def conditional_information(x: Tensor, y: Tensor, given: Sequence[Tensor], bins: int = 2) -> tuple[Tensor, Tensor]:
    """Return I(x; y | u) and I(x; y | u) / (H(x | u) + H(y | u)) in [0, 1/2] of series of bins `(N,)`.

    I(x; y | u) = H(x, u) + H(y, u) - H(x, y, u) - H(u), where u is all series in `given` together.
    """
    joint = histogram(x, y, *given, bins=bins).flatten(2)
    known = entropy(joint.sum((0, 1)))
    apart = entropy(joint.sum(1)) + entropy(joint.sum(0)) - 2 * known
    information = (apart + known - entropy(joint)).clamp_min(0)
    return information, _ratio(information, apart)


def released_conditional_information(x: Tensor, y: Tensor, given: Sequence[Tensor], bins: int) -> tuple[Tensor, Tensor]:
    """Return what the released code computes in place of `conditional_information`.

    Its "entropy given u" is the sum of -q log q over cells q that are not weighted, where p(x, u) is divided by every
    p(u') and p(x, y, u) by the p(u') whose number is the bin of x. 1/2 for independent series, and near 1 for skewed
    ones such as rectified features, whose cells exceed 1.
    """
    joint = histogram(x, y, *given, bins=bins)
    divisor = joint.sum((0, 1)).clamp_min(1e-10)[:, None, None]
    apart = entropy(joint.sum(1) / divisor) + entropy(joint.sum(0) / divisor)
    information = apart - entropy(joint / divisor)
    return information, _ratio(information, apart)


def contributions(mutual: Tensor, conditional: Tensor, fused: Tensor | float, own: Tensor) -> Tensor:
    """Return c `(M,)` = p_f NMI + p_m CNMI, at least 0.001, from each modality's `(M,)` (our reading).

    `fused` and `own` are the mean probabilities of the true class by the fused and by each modality's logits.
    """
    return (fused * mutual + own * conditional).clamp_min(SMALLEST)


def released_contributions(mutual: Tensor, conditional: Tensor, fused: Tensor | float, own: Tensor) -> Tensor:
    """Return c `(2,)` = p_f NMI + p_other (NMI - CNMI) as in the released code; of either sign."""
    return fused * mutual + own.flip(0) * (mutual - conditional)


def reinforcements(contributions: Tensor, limit: float | None = 10.0) -> Tensor:
    """Return each feature's factor `(M,)`: mean contribution of the others / own, within [1 / limit, limit].

    c_other / c_own with two modalities, as released (limit None: unbounded); the mean is our reading for more.
    """
    others = (contributions.sum() - contributions) / (len(contributions) - 1)
    factors = others / contributions
    return factors if limit is None else factors.clamp(1 / limit, limit)


class ReinforcedModel(MultimodalModel):
    """Scales the features, joins them, and maps twice: logits F(H [r_1 z_1; ...; r_M z_M]) without a non-linearity.

    H brings the joint features to the width d of each modality's, so that their entries can be paired. The factors r
    `(M,)` are `current` in training and the running `average` in evaluation. `neck` is the released code's random map.
    """

    average: Tensor

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: type[Fusion], classes: int, *_: bool) -> None:
        super().__init__(encoders, fusion, classes)
        width = max(self.widths.values())
        self.map = nn.Linear(self.fusion.width, width)
        self.head = nn.Linear(width, classes)
        self.register_buffer("average", torch.ones(len(self.modalities)))
        self.current: Tensor | None = None
        self.neck: nn.Linear | None = None

    def _scaled(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = self.completed(features)
        factors = self.current if self.training else self.average
        return whole if factors is None else {m: r * whole[m] for m, r in zip(self.modalities, factors, strict=True)}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return H's output `(B, d)`; a modality missing from `features` counts as zeros."""
        mapped: Tensor = self.map(self.fusion(self._scaled(features)))
        return mapped

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return logits `(B, C)` of each modality alone by its slice of F H; they sum to the fused logits."""
        if not self.fusion.additive:
            return {m: self.classify({m: value}) for m, value in features.items()}
        parts, weight = self.fusion.parts(self._scaled(features)), self.head.weight @ self.map.weight
        share = self.head(self.map.bias) / len(self.modalities)
        return {m: functional.linear(parts[m], weight[:, self.fusion.slices[m]], share) for m in features}


class ARM(Method):
    """Scales each modality's features by the others' contribution over its own, anew for every batch."""

    info = MethodInfo(
        title="ARM",
        paper="Gao, Cao, Zhu, Wang, Hu: Asymmetric Reinforcing against Multi-modal Representation Bias",
        venue="AAAI 2025",
        arxiv="2501.01240",
        origin="Gao-xiyuan/ARM @ a96d0ad67a7a547efb15cb4dc7b52f97f7ab0e83 (dynamic fusion alone)",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.FORWARD}),
        changes=frozenset({"encoders", "fusion", "head"}),
        equal_widths=True,
        linear_head=True,
    )

    class Options(MethodOptions):
        """Estimators and their guards."""

        variant: Literal["ours", "released"] = reading(
            "ours",
            "`released`: the public code, a diagnostic. It USES TEST LABELS: factors come from the labels of the "
            "batch that is judged. Its fused features are a random map that never learns, its conditional entropy "
            "is none, and its contributions may be negative: features flip sign, the more confident modality is "
            "amplified, or training diverges. `ours`: exact estimators, the trained map, a modality's own "
            "confidence, limits, and in evaluation the average of training. Default `ours`: the stated aim.",
        )
        bins: int = option(30, "Bins of the mutual information (official).", ge=2)
        conditional_bins: int = option(2, "Bins per series of the conditional one (official).", ge=2)
        limit: float = option(10.0, "Factors stay within [1 / limit, limit] (ours); 1 leaves two plain maps.", ge=1)
        memory: float = option(0.99, "Share of the running average of factors that a step keeps.", ge=0, lt=1)

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return what else variant=released cannot do."""
        fusion = task.fusion.__name__.lower()
        if options.variant == "released" and (len(task.modalities) != 2 or fusion != "concat"):
            found = f"{len(task.modalities)} modalities and fusion {fusion}"
            return f"variant=released takes two modalities and fusion concat, found {found}; use variant=ours"
        return super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build the model with its second map, and the released code's random one where it is read."""
        model = self.task.build_model(model_class=ReinforcedModel)
        assert isinstance(model, ReinforcedModel)
        if self.options.variant == "released":
            model.neck = nn.Linear(model.fusion.width, model.head.in_features)
        return model

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        """Return all parameters but the random map's, which no loss reaches."""
        return {name: value for name, value in super().parameters(model).items() if not name.startswith("neck.")}

    @torch.no_grad()
    def factors(self, model: ReinforcedModel, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return a batch's normalised `mutual` and `conditional` information and `factor`, each `(M,)`."""
        options, released = self.options, model.neck is not None
        joint = (model.neck or model.map)(model.fusion(features))
        alone = {m: model.head(z) for m, z in features.items()} if released else model.unimodal_logits(features)
        logits = torch.stack([model.head(joint), *alone.values()]).float()
        sure = logits.softmax(2)[:, torch.arange(len(labels), device=labels.device), labels].mean(1).double()
        series = torch.stack([joint, *features.values()]).float().flatten(1)
        fused, *own = bins_of(series, options.bins)
        mutual = torch.stack([mutual_information(z, fused, options.bins)[1] for z in own])
        bins = options.conditional_bins
        fused, *own = bins_of(series, bins)
        estimate = released_conditional_information if released else conditional_information
        given = [own[:k] + own[k + 1 :] for k in range(len(own))]
        conditional = torch.stack([estimate(z, fused, u, bins)[1] for z, u in zip(own, given, strict=True)])
        weigh, limit = (released_contributions, None) if released else (contributions, options.limit)
        factor = reinforcements(weigh(mutual, conditional, sure[0], sure[1:]), limit).float()
        return {"mutual": mutual, "conditional": conditional, "factor": factor}

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the cross-entropy of the scaled features' logits; no gradient reaches the factors."""
        model = ctx.model
        assert isinstance(model, ReinforcedModel)
        model.current = None
        with ctx.run.autocast():
            found = self.factors(model, forward.features, batch.labels)
        for k, m in enumerate(model.modalities):
            for name, values in found.items():
                ctx.note(f"{name}, {m}", values[k])
        model.current = found["factor"]
        model.average.lerp_(model.current, max(1 - self.options.memory, 1 / (ctx.steps + 1)))
        return super().losses(forward, batch, ctx)

    def predict(self, model: MultimodalModel, batch: Batch) -> Prediction:
        """Return the logits with the running average of factors; `released` takes the judged batch's own."""
        if self.options.variant == "ours":
            return super().predict(model, batch)
        assert isinstance(model, ReinforcedModel)
        features = model.encode(batch.inputs)
        model.average = self.factors(model, features, batch.labels)["factor"]
        return model.answer(features)
