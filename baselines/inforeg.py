"""InfoReg: while a modality is in its prime learning window, its lead over the others holds its encoder back.

Huang, Wei, Yang, Hu: "Adaptive Unimodal Regulation for Balanced Multimodal Information Acquisition", CVPR 2025.
Read from the official code; "A" is its version of March 2025, "B" that of November 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    option,
    reading,
    summed_confidences,
    unimodal_losses,
)

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.model import MultimodalModel
    from benchmark.task import Task

OFFICIAL_BATCH = 64
OFFICIAL_MEMORY = 10
"""Epochs over which the official code, in runs of 80, measures growth."""


def pull_strengths(scores: Tensor, strengths: Tensor) -> Tensor:
    """Return beta `(M,)` from scores and base strengths `(M,)`: strength * exp(tanh(gap)) for the leader, else 0.

    The gap is the leader's score minus the mean of the others'; a tie has no leader. More than two modalities are
    our generalisation.
    """
    others = (scores.sum() - scores) / (len(scores) - 1)
    leads = scores == scores.max()
    alone = leads & (leads.sum() == 1)
    return torch.where(alone, strengths * (scores - others).tanh().exp(), 0.0)


@torch.no_grad()
def pull_(
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    strength: Tensor | float,
) -> None:
    """Add strength * (parameter - anchor) to every gradient in place: the gradient of strength / 2 ||p - a||^2."""
    factor = torch.as_tensor(strength)
    for name, gradient in gradients.items():
        gradient.addcmul_(parameters[name] - anchors[name], factor)


@torch.no_grad()
def squared_gradient(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return one step's contribution to an encoder's trace: mean squared entry per weight tensor, summed over them.

    Counts the weights of two and more dimensions, those of convolutions, linear and attention layers. Summed over the
    steps of an epoch it is a proxy of the Fisher trace, of mini-batch gradients.
    """
    means = [g.square().mean() for name, g in gradients.items() if g.ndim >= 2 and name.endswith("weight")]
    return torch.stack(means).sum() if means else torch.zeros(())


def growth_rate(traces: Sequence[float], memory: int = OFFICIAL_MEMORY) -> float:
    """Return the rate k at which the mean trace of the last `memory` epochs grew, of one trace per finished epoch.

    Missing epochs count as zeros, and k = 1 before the first: it starts high and falls as traces fill the memory.
    """
    if not traces:
        return 1.0
    recent, left = sum(traces[-memory:]), traces[-memory - 1] if len(traces) > memory else 0.0
    return (traces[-1] - left) / recent if recent > 0 else 0.0


def in_window(traces: Sequence[float], threshold: float, memory: int = OFFICIAL_MEMORY) -> bool:
    """Return whether the next epoch lies in the prime learning window, k > threshold.

    A rate over a shorter memory is larger by as much; the threshold is scaled to keep its official meaning.
    """
    return growth_rate(traces, memory) > threshold * OFFICIAL_MEMORY / memory


class InfoReg(Method):
    """Adds unimodal losses, and early on pulls the leading encoder back to where the epoch found it."""

    info = MethodInfo(
        title="InfoReg",
        paper="Huang, Wei, Yang, Hu: Adaptive Unimodal Regulation for Balanced Multimodal Information Acquisition",
        venue="CVPR 2025",
        arxiv="2503.18595",
        origin="GeWu-Lab/InfoReg_CVPR2025 @ 2f1bd9f (A) and 939b2ed11dcbf4daddb2507157b2cb9f8d0e24d7 (B)",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.PARAMETER_GRADIENT, Intervention.LOSS, Intervention.SCHEDULE}),
        changes=frozenset({"encoders", "fusion", "head"}),  # fusion and head under heads=slices alone
    )

    # Version A's defaults, which are CREMA-D's.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"strength": {"audio": 0.95, "video": 0.1}, "threshold": 0.04, "memory": 10 / 80},
    }

    class Options(MethodOptions):
        """Strength, window and readings."""

        strength: NonNegativeFloat | dict[str, NonNegativeFloat] = option(
            0.95,
            "Smallest beta of a leading modality, which grows to e times as much: one for all, or by modality "
            "(missing: 0). Official on CREMA-D: audio 0.95, video 0.1, which version A never reaches. "
            "0 is joint training with unimodal losses, a strong baseline.",
        )
        threshold: float = option(0.04, "K: the window is open while k > K. Official: 0.04 (A), 0.05 (B).", ge=0)
        memory: float = option(
            10 / 80,
            "Epochs over which growth is measured, as a fraction of the run (official: 10 of 80 in A, of 50 "
            "in B). K is meant for ten epochs and is scaled to the number that results.",
            gt=0,
            le=1,
        )
        heads: Literal["separate", "slices"] = reading(
            "separate",
            "Unimodal logits from heads of their own (A), or from slices of the fused head (B), which then "
            "receives every loss. Default `separate`: the code that was public when others compared with it.",
        )
        reference: Literal["leader", "first"] = reading(
            "leader",
            "Whose window counts: the official code knows only that of audio, the `first` modality, even where "
            "video leads. Default `leader`, the modality held back: the same while audio leads, and "
            "independent of the order of modalities.",
        )
        gap: Literal["sum", "scaled"] = reading(
            "sum",
            "Scores are sums over the batch, so that beta saturates at a lead of two samples. `scaled`: times "
            "64 / B, the same at every batch size (ours). Default `sum`: the official code, with batches of 64.",
        )

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return which strengths are for no modality of the task."""
        named = options.strength if isinstance(options.strength, dict) else {}
        if unknown := sorted(set(named).difference(task.modalities)):
            return f"has no modality {', '.join(unknown)} to hold back; use {', '.join(task.modalities)}"
        return super().refuses(options, task)

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.traces: dict[str, list[float]] = {m: [] for m in task.modalities}

    def build(self) -> MultimodalModel:
        """Build the model, with a head per modality unless slices serve."""
        return self.task.build_model(unimodal_heads=self.options.heads == "separate")

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss and one per modality, all with weight 1, in and out of the window."""
        return super().losses(forward, batch, ctx) | unimodal_losses(forward, batch.labels)

    def start_epoch(self, ctx: Context) -> None:
        """Find out which modalities may be held back, and keep their encoders' weights as anchors."""
        modalities, device = ctx.model.modalities, ctx.train.labels.device
        memory = max(1, round(self.options.memory * ctx.epochs))
        strengths = []
        for m in modalities:
            source = self.traces[modalities[0] if self.options.reference == "first" else m]
            strengths.append(self._strength(m) if in_window(source, self.options.threshold, memory) else 0.0)
            ctx.note(f"growth rate, {m}", growth_rate(self.traces[m], memory))
        self.strengths = torch.tensor(strengths, device=device)
        # Only these can be pulled in this epoch; the others keep no copy.
        held = [m for m, strength in zip(modalities, strengths, strict=True) if strength > 0]
        self.parameters_of = {m: ctx.model.encoder_parameters(m) for m in held}
        self.anchors = {m: {name: p.detach().clone() for name, p in self.parameters_of[m].items()} for m in held}
        self.sums = {m: torch.zeros((), device=device) for m in modalities}

    def _strength(self, modality: str) -> float:
        given = self.options.strength
        return given.get(modality, 0.0) if isinstance(given, dict) else given

    def modulate_parameters(
        self, gradients: dict[str, dict[str, Tensor]], forward: Forward, batch: Batch, ctx: Context
    ) -> None:
        """Pull the leading encoder towards its anchor; add what results to the traces."""
        if self.anchors:
            with torch.no_grad():
                found = summed_confidences(forward.unimodal, batch.labels)
                if self.options.gap == "scaled":
                    found = found * (OFFICIAL_BATCH / len(batch))
                betas = dict(zip(forward.unimodal, pull_strengths(found, self.strengths), strict=True))
            for m, anchors in self.anchors.items():
                pull_(gradients[m], self.parameters_of[m], anchors, betas[m])
                ctx.note(f"pull, {m}", betas[m])
        for m, values in gradients.items():
            self.sums[m] += squared_gradient(values)

    def end_epoch(self, ctx: Context) -> None:
        """Append every modality's trace of the epoch."""
        for m, value in self.sums.items():
            self.traces[m].append(float(value))

    def state_dict(self) -> dict[str, Any]:
        """Return the traces; anchors are the weights with which the next epoch starts."""
        return {"traces": {m: list(values) for m, values in self.traces.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the traces."""
        self.traces = {m: list(values) for m, values in state["traces"].items()}
