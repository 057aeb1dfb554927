"""AGM: the gradient of each modality's share in the logits scaled by how it does now against how it did so far.

Li, Li, Hu, Lei, Li, Zhou: "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023;
formulas are those of the official code. A coalition is a set of modalities that the model sees, with zeros as the
input of all others. Vectors `(M,)` are in the order of the modalities.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, option, total

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

Coalition = frozenset[str]

LARGEST_SCORE = -math.log(1e-8)
"""The official code floors probabilities at 1e-8."""


def coalitions(modalities: Sequence[str]) -> list[Coalition]:
    """Return all coalitions but the empty one and that of all modalities: 2^M - 2."""
    return [Coalition(members) for size in range(1, len(modalities)) for members in combinations(modalities, size)]


def responses(modalities: Sequence[str], fused: Tensor, muted: Mapping[Coalition, Tensor]) -> dict[str, Tensor]:
    """Split the fused logits `(B, C)` into one Shapley response `(B, C)` per modality; they sum to `fused`.

    `muted` holds every coalition's logits. The empty coalition is left out, as in the official code: with two
    modalities, m_a = (F - V + A) / 2.
    """
    count = len(modalities)
    result = {}
    for name in modalities:
        response = fused / count
        for members, logits in muted.items():
            size = len(members)
            others = size if name in members else size - count
            response = response + logits / (others * math.comb(count, size))
        result[name] = response
    return result


def scores(logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return each modality's cross-entropy s `(M,)`, float64, from its response `(B, C)`; smaller is better."""
    losses = [functional.cross_entropy(values, labels, reduction="none") for values in logits.values()]
    return torch.stack(losses).double().clamp_max(LARGEST_SCORE).mean(1)


def strengths(score: Tensor) -> Tensor:
    """Return exp(M / (M - 1) (mean s - s_m)) `(M,)`: above 1 is stronger than the others, s_v - s_a for two."""
    return (len(score) / (len(score) - 1) * (score.mean() - score)).exp()


def coefficients(score: Tensor, history: Tensor, *, alpha: float = 1.0, cap: float | None = 10.0) -> Tensor:
    """Return kappa = exp(alpha min(tau - r, cap)) `(M,)` from scores and their mean over all earlier steps `(M,)`.

    A modality that is stronger now (r) than so far (tau) is slowed, kappa < 1; one that is weaker is boosted.
    """
    return (alpha * (strengths(history) - strengths(score)).clamp_max(math.inf if cap is None else cap)).exp()


def updated_history(history: Tensor, score: Tensor, step: int) -> Tensor:
    """Return the mean `(M,)` of all scores up to and including those of `step`, which counts from 1."""
    return history * ((step - 1) / step) + score / step


def routing(modalities: Sequence[str], kappa: Tensor) -> tuple[Tensor, dict[Coalition, Tensor]]:
    """Return by what dL/dF is multiplied to give the gradient of the fused and of every coalition's logits.

    Scaling each response's gradient by its kappa `(M,)` comes to this: the mean kappa for the fused logits, and for
    a coalition of s modalities (mean kappa of its members - mean kappa of the others) / binomial(M, s).
    """
    shares = {}
    for members in coalitions(modalities):
        inside = [value for name, value in zip(modalities, kappa, strict=True) if name in members]
        outside = [value for name, value in zip(modalities, kappa, strict=True) if name not in members]
        difference = torch.stack(inside).mean() - torch.stack(outside).mean()
        shares[members] = difference / math.comb(len(modalities), len(members))
    return kappa.mean(), shares


@torch.no_grad()
def clip_(parameters: Iterable[Tensor], head: Tensor, limit: float) -> None:
    """Clip the global norm of all gradients to `limit`, in place, if an entry of the head's gradient exceeds it."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    assert head.grad is not None
    # A norm of 0 clips nothing: the decision stays on the device.
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.where(head.grad.abs().amax() > limit, norm, 0.0))


class AGM(Method):
    """Slows a modality that does better than its own past, relative to the others, and boosts one that does worse.

    The official code runs the model once per coalition. Here encoders see one modality each, so that its own input
    and a zero input give all coalitions; the zero input's features are those of one sample, in evaluation mode.
    """

    info = MethodInfo(
        title="AGM",
        paper="Li, Li, Hu, Lei, Li, Zhou: Boosting Multi-modal Model Performance with Adaptive Gradient Modulation",
        venue="ICCV 2023",
        arxiv="2308.07686",
        origin="lihong2303/AGM_ICCV2023 @ 5a65542c70b1c7c15c5df291e77fa9cf2bbb9549",
        licence="MIT",
        category="imbalance",
        interventions=frozenset({Intervention.FEATURE_GRADIENT, Intervention.EXTRA_PASSES}),
        changes=frozenset({"encoders", "fusion", "head"}),
        passes=Passes(2.016, 2.016),
    )
    noop: ClassVar[Mapping[str, object]] = {"alpha": 0.0, "clip": None}

    # Issues #3, #5 and #10 (alpha); the datasets' tasks in the repository (cap, clip).
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"alpha": 1.5, "cap": 10.0, "clip": 1.0},
        "av_mnist": {"alpha": 2.5, "cap": None, "clip": 1.0},
        "ur_funny": {"alpha": 4.0, "cap": 7.0, "clip": 5.0},
        "ave": {"cap": None, "clip": None},
        "cmu_mosei": {"cap": None},
    }

    class Options(MethodOptions):
        """Strength, its bound, window and gradient clipping."""

        alpha: float = option(
            1.0,
            "Strength; 1.0 in the code. The authors name 1.5 for CREMA-D, 2.5 for AV-MNIST and 4.0 for UR-Funny, in "
            "runs of 800 to 1500 epochs.",
            ge=0,
        )
        cap: float | None = option(
            10.0,
            "Largest tau - r, so that kappa <= exp(alpha cap); none bounds nothing. Official: 10 on CREMA-D, 7 on "
            "UR-Funny, none on AVE, AV-MNIST and MOSEI.",
            ge=0,
        )
        window: float = option(
            1.0,
            "Fraction of the run that is modulated, from its start; joint training follows. Official runs stay inside. "
            "(The official code would keep the last coefficients for ever.)",
            ge=0,
            le=1,
        )
        clip: float | None = option(
            1.0,
            "Largest entry of the head's weight gradient, beyond which the norm of all gradients is clipped to this "
            "number. Official: 1 on CREMA-D and AV-MNIST, 5 on UR-Funny, none on AVE. Default 1: kappa alone may reach "
            "exp(10).",
            gt=0,
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.history = torch.zeros(len(task.modalities), dtype=torch.float64)
        self.steps = 0

    def modulated_epochs(self, epochs: int) -> int:
        """Return the length of the window in epochs."""
        return round(self.options.window * epochs)

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch; in the window, gradients also flow through every coalition's logits."""
        if ctx.epoch >= self.modulated_epochs(ctx.epochs):
            super().step(batch, ctx)
            return
        names = self.task.modalities
        forward = ctx.forward(batch)
        logits = forward.logits
        logits.retain_grad()
        still = self._evaluation_pass(batch, ctx)
        muted = self._muted(still, logits, ctx)
        with torch.no_grad():
            kappa = self._coefficients(scores(responses(names, logits, muted), batch.labels))
        fused_share, shares = routing(names, kappa)
        loss = total(self.losses(forward, batch, ctx))
        gradients = ctx.feature_gradients(forward, loss)
        assert logits.grad is not None
        for parameter in (*ctx.model.fusion.parameters(), *ctx.model.head.parameters()):
            if parameter.grad is not None:
                parameter.grad.mul_(fused_share)
        torch.autograd.backward(list(muted.values()), [shares[members] * logits.grad for members in muted])
        ctx.encoder_backward(forward, {name: fused_share * gradient for name, gradient in gradients.items()})
        ctx.encoder_backward(still, {m: leaf.grad for m, leaf in still.features.items() if leaf.grad is not None})
        if self.options.clip is not None:
            clip_(ctx.model.parameters(), ctx.model.output.weight, self.options.clip)
        for name, value in zip(names, kappa, strict=True):
            ctx.note(f"coefficient of {name}", value)
        ctx.update(loss)

    @staticmethod
    def _evaluation_pass(batch: Batch, ctx: Context) -> Forward:
        """Encode the batch and, as its last sample, one of zeros in evaluation mode, where samples do not mix."""
        inputs = {name: torch.cat([values, torch.zeros_like(values[:1])]) for name, values in batch.inputs.items()}
        ctx.model.eval()
        still = ctx.forward(replace(batch, inputs=inputs))
        ctx.model.train()
        return still

    def _muted(self, still: Forward, logits: Tensor, ctx: Context) -> dict[Coalition, Tensor]:
        """Return every coalition's logits `(B, C)` in the precision of `logits`."""
        own = {name: values[:-1] for name, values in still.features.items()}
        absent = {name: values[-1:].expand(len(logits), -1) for name, values in still.features.items()}
        result = {}
        for members in coalitions(self.task.modalities):
            seen = {name: (own if name in members else absent)[name] for name in own}
            with ctx.run.autocast():
                result[members] = ctx.model.classify(seen).to(logits.dtype)
        return result

    def _coefficients(self, score: Tensor) -> Tensor:
        """Return kappa `(M,)` of this step, then take its scores `(M,)` into the history."""
        history = self.history.to(score.device)
        self.steps += 1
        self.history = updated_history(history, score, self.steps)
        return coefficients(score, history, alpha=self.options.alpha, cap=self.options.cap)

    def expected_passes(self, plan: Plan) -> Passes:
        """Return joint training's passes, doubled in the window, and there one more sample per step."""
        modulated = self.modulated_epochs(plan.epochs) / plan.epochs
        own = 1 + modulated * (1 + math.ceil(plan.train / plan.batch_size) / plan.train)
        return Passes(own, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean scores and the number of steps."""
        return {"history": self.history.tolist(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.history = torch.tensor(state["history"], dtype=torch.float64)
        self.steps = state["steps"]
