"""IMCL: one modality learns the task per step, the others learn from their teachers, easy samples first.

Zhou, Wang, Chen, Duan, Zhu: "Intra- and Inter-Modal Curriculum for Multimodal Learning", ACM Multimedia 2023.
The sample weights are those of SuperLoss (Castells, Weinzaepfel, Revaud, NeurIPS 2020).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.gradients import min_norm_weight
from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    Passes,
    Plan,
    option,
    reading,
    total,
    unimodal_losses,
)
from benchmark.model import MultimodalModel

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

Reduction = Literal["sum", "mean"]
Clamps = Literal["paper", "code"]


def distillation_losses(features: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return each sample's squared distance `(B,)` from the teacher's features; both arguments are `(B, d)`."""
    squares = (features - teacher.detach()).square()
    return squares.sum(1) if reduction == "sum" else squares.mean(1)


def sample_weights(losses: Tensor, threshold: Tensor | float, beta: float = 1.0) -> Tensor:
    """Return SuperLoss's weights `(B,)` of losses `(B,)`: exp(-W((l - threshold) / (2 beta))), at most e.

    W is the principal branch of Lambert's function. A loss at the threshold weighs 1, an easier one more.
    """
    from scipy.special import lambertw

    excess = (losses.detach().double() - threshold) / (2 * beta)
    branch = lambertw(excess.clamp_min(-1 / math.e).cpu().numpy()).real
    weights = torch.from_numpy(branch).neg().exp().to(losses.device)
    # W is evaluated poorly at its branch point, and everything below it is cut off there.
    return torch.where(excess > -1 / math.e, weights, math.e).to(losses)


def moved_threshold(losses: Tensor, previous: Tensor | None = None, gamma: float = 0.9) -> Tensor:
    """Return SuperLoss's threshold lambda after losses `(B,)`: a moving average that starts at the first mean."""
    mean = losses.detach().mean()
    return mean if previous is None else gamma * previous.to(mean) + (1 - gamma) * mean


def superloss(losses: Tensor, threshold: Tensor | float, weights: Tensor, beta: float = 1.0) -> Tensor:
    """Return mean[(l - threshold) w + beta (log w)^2] of losses and weights `(B,)`; weights are constants."""
    return ((losses - threshold) * weights + beta * weights.log().square()).mean()


def task_share(distillation: Tensor, task: Tensor, clamps: Clamps = "paper") -> float:
    """Return alpha of min ||alpha g + (1 - alpha) h||, g the distillation and h the task gradient `(B, d)`.

    A modality with a large alpha follows its teacher already. "code": 0.001 and 0.999 instead of 0 and 1.
    """
    alpha = min_norm_weight(distillation.flatten(), task.flatten())
    return {0.0: 0.001, 1.0: 0.999}.get(alpha, alpha) if clamps == "code" else alpha


class IMCL(Method):
    """Routes the task to one encoder per step and teaches the others, with every loss weighted easy to hard.

    Teachers are the suite's encoders, trained alone on the same data before the run starts, from the same initial
    weights as their students. The learning rate's schedule spans their training as it spans the run. The teachers
    share no parameters, so one loop trains them all.
    """

    info = MethodInfo(
        title="IMCL",
        paper="Zhou, Wang, Chen, Duan, Zhu: Intra- and Inter-Modal Curriculum for Multimodal Learning",
        venue="ACM MM 2023",
        arxiv=None,
        origin="zhouyw16/I2MCL @ c318357ab6c33db45149442ef974890320144ca2 (VQA and entailment only)",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS, Intervention.FEATURE_GRADIENT, Intervention.EXTRA_PASSES}),
        changes=frozenset({"encoders", "fusion", "head"}),
        passes=Passes(3.0, 2.0),
    )

    # Code of the two released experiments.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        name: {"clip_norm": 0.25, "distillation": "sum", "clamps": "code"} for name in ("vqa_v2", "snli_ve")
    }

    class Options(MethodOptions):
        """Curriculum, teachers and readings."""

        gamma: float = option(0.9, "Share of the old threshold lambda that a step keeps. Not tuned.", ge=0, lt=1)
        beta: float = option(1.0, "Regulariser of the sample weights; large values make all of them 1.", gt=0)
        teacher_length: float = option(1.0, "Length of the teachers' training as a fraction of the run.", gt=0)
        clip_norm: float | None = option(
            None, "Largest norm of the whole gradient. Official: 0.25, tied to Adamax and attention models.", gt=0
        )
        threshold: Literal["used", "always"] = reading(
            "used",
            "A stream's threshold moves in every step (`always`, paper), or when its loss is trained (`used`, code). "
            "Default `used`: it then follows the losses that it weights.",
        )
        teacher_view: Literal["augmented", "once"] = reading(
            "augmented",
            "Teachers see every sample `once`, un-augmented, before the run (paper), or the student's batch (code). "
            "Default `augmented`: both agree on the input. The forward pass is counted; the authors leave it out.",
        )
        clamps: Clamps = reading(
            "paper",
            "Alpha where one gradient alone has the smallest norm: 0 and 1 (`paper`), or 0.001 and 0.999 (`code`). "
            "Default `paper`: exact; they differ only between alphas outside [0.001, 0.999].",
        )
        distillation: Reduction = reading(
            "mean",
            "Squared distances summed over features (`sum`, code), or their mean. Default `mean`: sums fit the code's "
            "Adamax, but multiply SGD's step (chance on digits at 0.01), and at beta = 1 drive weights to e and 0.",
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        """Start without teachers and without thresholds."""
        super().__init__(options, task)
        self.thresholds: dict[str, Tensor] = {}
        self.teachers: MultimodalModel | None = None
        self.targets: dict[str, Tensor] = {}
        self._saved: dict[str, Tensor] = {}
        self._heads = nn.ModuleDict()

    def build(self) -> MultimodalModel:
        """Build the suite's model, and the teachers' heads from the draws that follow it."""
        model = self.task.build_model(unimodal_heads=True)
        self._heads, model.unimodal_heads = model.unimodal_heads, nn.ModuleDict()
        return model

    def start_epoch(self, ctx: Context) -> None:
        """Train the teachers before the first epoch; build them from their weights after an interruption."""
        if self.teachers is not None:
            return
        teachers = copy.deepcopy(ctx.model)  # encoders with their pass counters
        teachers.unimodal_heads = copy.deepcopy(self._heads).to(next(ctx.model.parameters()).device)
        if self._saved:
            teachers.load_state_dict(self._saved)
        else:
            self._train(teachers, ctx)
        self.teachers = teachers.eval().requires_grad_(False)

    def _train(self, teachers: MultimodalModel, ctx: Context) -> None:
        def alone(batch: Batch, side: Context) -> None:
            forward = side.forward(batch)
            side.descend(forward, total(unimodal_losses(forward, batch.labels)))

        used, length = teachers.parameters_under("encoders.", "unimodal_heads."), self._teacher_epochs(ctx.epochs)
        epochs = [epoch * ctx.epochs / length for epoch in range(length)]
        side = ctx.train_aside(teachers, used, "teachers", alone, epochs=epochs)
        if self.options.teacher_view == "once":
            seen = [forward.features for _, forward in side.evaluate(ctx.train)]
            self.targets = {m: torch.cat([features[m] for features in seen]) for m in teachers.modalities}

    def _teacher_epochs(self, epochs: int) -> int:
        return max(1, round(self.options.teacher_length * epochs))

    @torch.no_grad()
    def _taught(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the teachers' features `(B, d_m)` of a batch."""
        if self.targets:
            return {m: values.to(batch.index.device)[batch.index] for m, values in self.targets.items()}
        assert self.teachers is not None
        with ctx.run.autocast():
            return self.teachers.encode(batch.inputs)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the weighted task loss, seen by one encoder, and the others' weighted distillation losses."""
        features, taught = forward.features, self._taught(batch, ctx)
        apart = {m: distillation_losses(z, taught[m].to(z), self.options.distillation) for m, z in features.items()}
        learner = self._learner(forward, batch, apart)
        for m in apart:
            ctx.note(f"share of steps on the task, {m}", float(m == learner))
        with ctx.run.autocast():
            logits = forward.model.classify({m: z if m == learner else z.detach() for m, z in features.items()})
        fused = functional.cross_entropy(logits.to(features[learner]), batch.labels, reduction="none")
        streams = {"task": fused, **{f"distillation, {m}": values for m, values in apart.items()}}
        idle = f"distillation, {learner}"
        if self.options.threshold == "always":
            self._threshold(idle, streams[idle])
        return {stream: self._weighted(stream, values, ctx) for stream, values in streams.items() if stream != idle}

    def _learner(self, forward: Forward, batch: Batch, apart: Mapping[str, Tensor]) -> str:
        """Return who learns the task: the largest alpha of the unweighted losses' gradients, the first of equals."""
        features = forward.features
        task = torch.autograd.grad(functional.cross_entropy(forward.logits, batch.labels), list(features.values()))
        shares = {}
        for (m, z), gradient in zip(features.items(), task, strict=True):
            distillation = torch.autograd.grad(apart[m].mean(), z, retain_graph=True)[0]
            shares[m] = task_share(distillation, gradient, self.options.clamps)
        return max(shares, key=lambda m: shares[m])

    def _threshold(self, stream: str, losses: Tensor) -> Tensor:
        self.thresholds[stream] = moved_threshold(losses, self.thresholds.get(stream), self.options.gamma)
        return self.thresholds[stream]

    def _weighted(self, stream: str, losses: Tensor, ctx: Context) -> Tensor:
        threshold = self._threshold(stream, losses)
        weights = sample_weights(losses, threshold, self.options.beta)
        ctx.note(f"mean weight, {stream}", weights.mean())
        ctx.note(f"share of weights at e, {stream}", (weights > math.e - 1e-5).float().mean())
        ctx.note(f"share of weights below 0.1, {stream}", (weights < 0.1).float().mean())
        return superloss(losses, threshold, weights, self.options.beta)

    def modulate_parameters(
        self, gradients: dict[str, dict[str, Tensor]], forward: Forward, batch: Batch, ctx: Context
    ) -> None:
        """Clip the whole model's gradient where that is asked for."""
        if self.options.clip_norm is not None:
            nn.utils.clip_grad_norm_(ctx.model.parameters(), self.options.clip_norm)

    def expected_passes(self, plan: Plan) -> Passes:
        """Return the run's passes, the teachers' training, and their forward pass per sample and epoch, or once."""
        training = self._teacher_epochs(plan.epochs) / plan.epochs
        seen = 1 / plan.epochs if self.options.teacher_view == "once" else 1.0
        return Passes(forward=1 + training + seen, backward=1 + training)

    def state_dict(self) -> dict[str, Any]:
        """Return the thresholds, the teachers, and their features where these were computed once."""
        teachers = self._saved if self.teachers is None else self.teachers.state_dict()
        return {"thresholds": self.thresholds, "teachers": dict(teachers), "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the teachers follow at the next epoch's start."""
        self.thresholds, self.targets = dict(state["thresholds"]), dict(state["targets"])
        self.teachers, self._saved = None, dict(state["teachers"])
