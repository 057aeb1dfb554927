"""PCGrad: project a gradient that conflicts with another one onto that one's normal plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from benchmark.gradients import flatten, project_conflict, unflatten
from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    Passes,
    Plan,
    reading,
    unimodal_losses,
)
from benchmark.model import MultimodalModel
from benchmark.task import Task

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch

Granularity = Literal["batch", "sample"]


def visiting_orders(tasks: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Return the other tasks in the order each task meets them: by number, or random with a generator."""
    others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    if generator is None:
        return others
    return [[row[k] for k in torch.randperm(len(row), generator=generator).tolist()] for row in others]


def project(gradients: Sequence[Tensor], orders: Sequence[Sequence[int]] | None = None) -> list[Tensor]:
    """Project every gradient `(P,)` against the original others in turn (Algorithm 1); two need no order."""
    projected = []
    for gradient, order in zip(gradients, orders or visiting_orders(len(gradients)), strict=True):
        for j in order:
            gradient = project_conflict(gradient, gradients[j])
        projected.append(gradient)
    return projected


def combine(gradients: Sequence[Tensor], orders: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Return the sum `(P,)` of the projected gradients, the update of shared parameters (Algorithm 1)."""
    first, *rest = project(gradients, orders)
    return sum(rest, first)


def project_modalities(
    gradients: Mapping[str, Tensor],
    *,
    granularity: Granularity = "batch",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Project the modalities' feature gradients `(B, d)` on each other, one vector per batch or sample."""
    orders = visiting_orders(len(gradients), generator)

    def surgery(*rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(project(rows, orders))

    if granularity == "sample":
        projected = torch.func.vmap(surgery)(*gradients.values())
    else:
        projected = surgery(*(gradient.reshape(-1) for gradient in gradients.values()))
    return {m: vector.view_as(gradients[m]) for m, vector in zip(gradients, projected, strict=True)}


class PCGrad(Method):
    """Gradient surgery between the modalities' feature gradients, or between two losses on each encoder."""

    info = MethodInfo(
        title="PCGrad",
        paper="Yu, Kumar, Gupta, Levine, Hausman, Finn. Gradient Surgery for Multi-Task Learning",
        venue="NeurIPS 2020",
        arxiv="2001.06782",
        origin="tianheyu927/PCGrad @ c5fbd7c856526373828074f06875230f7f3ee79e",
        licence="MIT",
        category="conflict",
        interventions=frozenset({Intervention.FEATURE_GRADIENT, Intervention.PARAMETER_GRADIENT}),
        changes=frozenset({"encoders"}),
    )

    class Options(MethodOptions):
        """What the tasks are, and what is projected on what."""

        tasks: Literal["modality", "losses"] = reading(
            "modality",
            "The paper has several losses on shared parameters; one loss on separate encoders needs a "
            "definition. `modality`: tasks are modalities, each projected feature gradient enters its own "
            "encoder. `losses`: tasks are the fused and the unimodal loss, on each encoder's parameters. "
            "Default `modality`: RGM (Fig. 3) plots the cosine of feature gradients, which only it edits.",
        )
        granularity: Granularity = reading(
            "batch",
            "Inner products of `tasks=modality` over the whole batch tensor, or within each sample. Default "
            "`batch`: the paper projects one vector per task and step.",
        )

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return why the reading cannot run on `task`."""
        if options.tasks == "losses" and options.granularity == "sample":
            return "has no samples in the parameter gradients of tasks=losses; use granularity=batch"
        if options.tasks == "modality" and len(set(task.widths.values())) > 1:
            return (
                f"needs encoders of equal width with tasks=modality, found {task.widths}; "
                "use a backbone with one width, or tasks=losses"
            )
        return super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build the model, with a head per modality where unimodal losses are trained."""
        return self.task.build_model(unimodal_heads=self.options.tasks == "losses")

    def modulate_features(
        self,
        gradients: dict[str, Tensor],
        forward: Forward,
        batch: Batch,
        ctx: Context,
    ) -> dict[str, Tensor]:
        """Project the modalities' feature gradients against each other."""
        return project_modalities(gradients, granularity=self.options.granularity, generator=ctx.generator)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss, and with `tasks=losses` one per modality."""
        losses = super().losses(forward, batch, ctx)
        if self.options.tasks == "losses":
            losses |= unimodal_losses(forward, batch.labels)
        return losses

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch; with `tasks=losses` each encoder combines two gradients of its parameters."""
        if self.options.tasks == "modality":
            super().step(batch, ctx)
        else:
            self.step_per_loss(batch, ctx)

    def combine_losses(self, modality: str, gradients: dict[str, dict[str, Tensor]], ctx: Context) -> dict[str, Tensor]:
        """Project the gradients of the fused and the modality's own loss against each other and add them."""
        fused, unimodal = (list(values.values()) for values in gradients.values())
        combined = unflatten(combine([flatten(fused), flatten(unimodal)]), fused)
        return dict(zip(gradients["fused"], combined, strict=True))

    def expected_passes(self, plan: Plan) -> Passes:
        """Return joint training's passes, plus the second encoder backward of `tasks=losses`."""
        return Passes(1, 2 if self.options.tasks == "losses" else 1)
