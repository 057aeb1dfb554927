"""LFM: early training aligns the modalities' predictions, later training fits the labels.

Yang, Wan, Jiang, Xu: "Facilitating Multimodal Classification via Dynamically Learning Modality Gap", NeurIPS 2024.
The loss is 2 (w_c L_cls + w_a L_al) with w_c + w_a = 1 fixed during an epoch: cross-entropy of the averaged unimodal
logits, and an alignment of the modalities.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.context import Forward
from benchmark.fusion import Concat, Fusion
from benchmark.gradients import flatten
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, option, reading
from benchmark.model import MultimodalModel

if TYPE_CHECKING:
    from benchmark.context import Context
    from benchmark.data import Batch
    from benchmark.task import Task

Weighting = Literal["fitted", "heuristic", "learned"]

POLYNOMIAL = (2.04623704e-1, 3.35472727e-3, 1.22989557e-4, -2.92947416e-6, 2.23835486e-8, -5.39717505e-11)
"""Coefficients of 1, e, e^2, ... of the released fit to a learned w_c on CREMA-D, epochs e from 0 to 199."""
FITTED_EPOCHS = 200
LOWEST, HIGHEST = 0.05, 0.95
"""Bounds of the alignment's weight, heuristic and learned, and the value it is learned from."""
RESERVED = 16
"""Training samples that are held out to learn the weights."""


def mixture_divergence(a: Tensor, b: Tensor) -> Tensor:
    """Return [KL(m || p) + KL(m || q)] / 2 in nats, batch mean, for p, q = softmax of logits `(B, C)`, m their mean.

    Not the Jensen-Shannon divergence, whose terms are KL(p || m) and KL(q || m). Official code.
    """
    p, q = a.log_softmax(1), b.log_softmax(1)
    mixture = torch.logaddexp(p, q) - math.log(2)
    terms = (functional.kl_div(x, mixture, reduction="batchmean", log_target=True) for x in (p, q))
    return torch.stack(list(terms)).mean()


def contrastive(a: Tensor, b: Tensor, temperature: float = 0.07) -> Tensor:
    """Return the symmetric InfoNCE loss on cosines of two modalities' features `(B, d)`; negatives: other samples."""
    similarity = functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T / temperature
    own = torch.arange(len(a), device=a.device)
    return (functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)) / 2


def pairwise(values: Iterable[Tensor], alignment: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the mean of an alignment loss over all pairs of modalities."""
    return torch.stack([alignment(a, b) for a, b in combinations(values, 2)]).mean()


def fitted_weight(epoch: float) -> float:
    """Return the released polynomial's w_c at an epoch of 200; it exceeds 1, by at most 0.011, from 177 to 188."""
    return sum(factor * epoch**power for power, factor in enumerate(POLYNOMIAL))


def heuristic_weight(time: float) -> float:
    """Return w_a = exp(-time) within [0.05, 0.95]; `time` is 0.3 per epoch in the official code."""
    return min(max(math.exp(-time), LOWEST), HIGHEST)


def hypergradient(
    held_out: Sequence[Tensor], classification: Sequence[Tensor], alignment: Sequence[Tensor], lr: float
) -> Tensor:
    """Return d L(theta') / d w_a for theta' = theta - lr grad 2 (w_c L_cls + w_a L_al).

    `held_out` is the gradient of L at theta', the others are those of L_cls and L_al at theta (our one-step form).
    """
    return -2 * lr * torch.dot(flatten(held_out), flatten(alignment) - flatten(classification))


class LateFusion(MultimodalModel):
    """One linear head per modality, logits averaged. The task's fusion is not used; a missing modality has no say."""

    def __init__(self, encoders: Mapping[str, nn.Module], _: type[Fusion], classes: int, *_more: bool) -> None:
        super().__init__(encoders, Concat, classes, unimodal_heads=True)
        self.head = nn.Identity()  # type: ignore[assignment]  # nothing is fused before the logits

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the mean `(B, C)` of the logits of the modalities in `features`."""
        return torch.stack(list(self.unimodal_logits(features).values())).mean(0)


class LFM(Method):
    """Weighted sum of classification and alignment, whose weights move from the alignment to the labels.

    The alignment is averaged over pairs of modalities. The fitted weights are the released ones at the same fraction
    of the run, except that w_a is not allowed below 0.
    """

    info = MethodInfo(
        title="LFM",
        paper="Yang, Wan, Jiang, Xu: Facilitating Multimodal Classification via Dynamically Learning Modality Gap",
        venue="NeurIPS 2024",
        arxiv=None,
        origin="njustkmg/NeurIPS24-LFM @ ad44fa09fee471c9267a7cba526b222c54d45493",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS, Intervention.SCHEDULE}),
        changes=frozenset({"encoders", "fusion", "head"}),
    )

    class Options(MethodOptions):
        """Readings, and the numbers that belong to one of them."""

        weighting: Weighting = reading(
            "fitted",
            "`fitted`: a polynomial, fitted by the authors to a learned w_c (released main script). `heuristic`: w_a "
            "decays exponentially, no factor 2 (removed script, which started from pretrained heads; here it does "
            "not). `learned`: bi-level, as in the paper, by the gradient of a held-out loss after one step; the "
            "released update looks at one tensor and hardly moves. Default `fitted`: it made the released results.",
        )
        alignment: Literal["divergence", "contrastive"] = reading(
            "divergence",
            "`divergence`: of the predicted classes from their mixture (all released code). `contrastive`: InfoNCE on "
            "features (paper), without its second term on negatives of the anchor's own modality, which no code "
            "shows. Default `divergence`: it made the released results.",
        )
        heads: Literal["separate", "slices"] = reading(
            "separate",
            "`separate`: late fusion of a head per modality (paper and code). `slices`: the task's fusion and head, "
            "cross-entropy on its logits, alignment of its slices (BalanceBenchmark).",
        )
        decay: float = option(6.0, "`heuristic`: w_a is exp(-decay) at the end; officially 0.3 x 20 epochs.", gt=0)
        rate: float = option(
            10.0,
            "`learned`: step of w_a on its gradient, halved after every tenth of the run. Official: 1e-4 on another "
            "quantity, which leaves w_a where it started.",
            gt=0,
        )
        temperature: float = option(0.07, "`contrastive`: divisor of cosines; not found in the paper.", gt=0)

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        """Start from the learned weighting's initial value, nothing held out."""
        super().__init__(options, task)
        self.alignment_weight = HIGHEST
        self.held_out = torch.empty(0, dtype=torch.int64)

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Refuse cosines between features of unequal widths, too."""
        if options.alignment == "contrastive" and len(set(task.widths.values())) > 1:
            return (
                f"alignment=contrastive compares features and needs encoders of equal width, found {task.widths}; "
                "use alignment=divergence or a backbone with one width"
            )
        return super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build the late-fusion model, or the suite's for `slices`."""
        return self.task.build_model(model_class=LateFusion if self.options.heads == "separate" else MultimodalModel)

    def start_epoch(self, ctx: Context) -> None:
        """Set the epoch's weights."""
        progress = ctx.epoch / ctx.epochs
        if self.options.weighting == "fitted":
            self.alignment_weight = max(1 - fitted_weight(FITTED_EPOCHS * progress), 0.0)
        elif self.options.weighting == "heuristic":
            self.alignment_weight = heuristic_weight(self.options.decay * progress)
        else:
            if ctx.epoch == 0:
                count = self._reserved(len(ctx.train))
                self.held_out = torch.randperm(len(ctx.train), generator=ctx.generator)[:count].sort().values
            rate = self.options.rate * 0.5 ** (10 * ctx.epoch // ctx.epochs)
            self.alignment_weight = min(max(self.alignment_weight - rate * self._slope(ctx), LOWEST), HIGHEST)
        ctx.note("weight of the alignment", self.alignment_weight)

    def batches(self, ctx: Context) -> Iterable[Batch]:
        """Return the batches of all data, or of all but the samples that weights are learned on."""
        return ctx.batches(indices=ctx.train.others(self.held_out) if self.options.weighting == "learned" else None)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the weighted classification and alignment losses."""
        scale = 1.0 if self.options.weighting == "heuristic" else 2.0
        classification, alignment = self._terms(forward, batch.labels)
        return {
            "classification": scale * (1 - self.alignment_weight) * classification,
            "alignment": scale * self.alignment_weight * alignment,
        }

    def _terms(self, forward: Forward, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.options.alignment == "contrastive":
            compare = partial(contrastive, temperature=self.options.temperature)
            alignment = pairwise(forward.features.values(), compare)
        else:
            alignment = pairwise(forward.unimodal.values(), mixture_divergence)
        return functional.cross_entropy(forward.logits, labels), alignment

    @staticmethod
    def _reserved(samples: int) -> int:
        return min(RESERVED, samples // 2)

    def _slope(self, ctx: Context) -> float:
        """Return the derivative, by w_a, of the held-out classification loss after one step on a random batch."""
        clone = copy.deepcopy(ctx.model).eval()  # officially too, but for the first epoch
        parameters = [parameter for parameter in clone.parameters() if parameter.requires_grad]

        def gradients(positions: Tensor, count: int) -> list[tuple[Tensor, ...]]:
            batch = next(ctx.train.batches(len(positions), indices=positions))
            with ctx.run.autocast():
                encoded = clone.encode(batch.inputs)
            terms = self._terms(Forward(clone, encoded, ctx.run.autocast, cut=False), batch.labels)
            grad = partial(torch.autograd.grad, inputs=parameters, retain_graph=True, materialize_grads=True)
            return [grad(term) for term in terms[:count]]

        held_in = ctx.train.others(self.held_out)
        chosen = held_in[torch.randperm(len(held_in), generator=ctx.generator)[: ctx.plan.batch_size]]
        classification, alignment = gradients(chosen, 2)
        weight = self.alignment_weight
        with torch.no_grad():
            for parameter, c, a in zip(parameters, classification, alignment, strict=True):
                parameter.sub_(2 * ctx.lr * ((1 - weight) * c + weight * a))
        (held_out,) = gradients(self.held_out, 1)
        return float(hypergradient(held_out, classification, alignment, ctx.lr))

    def expected_passes(self, plan: Plan) -> Passes:
        """Learning holds samples out and, per epoch, passes one batch forward and twice back, and those once."""
        if self.options.weighting != "learned":
            return Passes()
        held_in = plan.train - self._reserved(plan.train)
        batch = min(plan.batch_size, held_in)
        return Passes((plan.train + batch) / plan.train, (plan.train + 2 * batch) / plan.train)

    def state_dict(self) -> dict[str, Any]:
        """Return the learned weight and the held-out samples."""
        return {"weight": self.alignment_weight, "held_out": self.held_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.alignment_weight, self.held_out = state["weight"], state["held_out"]
