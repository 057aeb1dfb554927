"""Unimodal training: one modality alone, with a linear head of its own. One row of a table per modality."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.context import Context, Forward
from benchmark.data import Batch
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, option
from benchmark.model import MultimodalModel, Prediction
from benchmark.task import Task


class Unimodal(Method):
    """Trains the encoder and head of the modality named in the options; the others are never encoded."""

    info = MethodInfo(
        title="Unimodal training",
        paper="No method: the cross-entropy of one modality",
        venue="",
        arxiv=None,
        origin="this suite",
        licence="Apache-2.0",
        category="reference",
        interventions=frozenset({Intervention.FORWARD, Intervention.LOSS}),
        changes=frozenset({"encoders", "fusion", "head"}),
        min_modalities=1,
    )

    adversarial: ClassVar[bool] = False

    class Options(MethodOptions):
        """Which modality."""

        modality: str = option(..., "the modality to train on")

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Refuse a modality that the task does not have."""
        if options.modality not in task.modalities:
            return f"has no modality {options.modality!r}; choose one of {', '.join(task.modalities)}"
        return super().refuses(options, task)

    @classmethod
    def sample_options(cls, task: Task) -> dict[str, Any]:
        """Train on the first modality."""
        return {"modality": task.modalities[0]}

    def build(self) -> MultimodalModel:
        """Build the shared model with one head per modality, so that encoders start as in every other row."""
        return self.task.build_model(unimodal_heads=True)

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        """Return the modality's encoder and head."""
        own = (f"encoders.{self.options.modality}.", f"unimodal_heads.{self.options.modality}.")
        return {name: value for name, value in model.named_parameters() if name.startswith(own)}

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the modality's own cross-entropy."""
        return {self.options.modality: functional.cross_entropy(forward.unimodal[self.options.modality], batch.labels)}

    def step(self, batch: Batch, ctx: Context) -> None:
        """Encode and train the one modality."""
        forward = ctx.forward(batch, only=[self.options.modality])
        ctx.descend(forward, self.losses(forward, batch, ctx)[self.options.modality])

    def predict(self, model: MultimodalModel, batch: Batch) -> Prediction:
        """Answer with the modality's own head, which sees zeros where its modality is missing."""
        own = self.options.modality
        features = model.encode(batch.inputs, only=[own])
        unimodal = model.unimodal_logits(features)
        blind = model.unimodal_logits({own: torch.zeros_like(features[own])})
        missing = {m: (blind if m == own else unimodal)[own] for m in model.modalities}
        return Prediction(unimodal[own], unimodal, missing)

    def expected_passes(self, plan: Plan) -> Passes:
        """One of M encoders runs."""
        return Passes(1 / len(plan.modalities), 1 / len(plan.modalities))
