"""Diagnosing and Re-learning: pull over-fitted encoders back towards their initial weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, option, reading

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

    from benchmark.context import Context
    from benchmark.data import Part
    from benchmark.model import MultimodalModel
    from benchmark.task import Task


@cache
def _thread_pools() -> ThreadpoolController:
    """Return the controller of the thread pools in this process, found once: the search takes as long as a k-means."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def cluster(features: Tensor, clusters: int) -> Tensor:
    """Return the k-means cluster `(N,)` of each row of `features` `(N, d)`, scaled to [-1, 1] per column.

    Restarts and seed are fixed (10, 0): scikit-learn's default changed from 10 restarts to 1 in version 1.4,
    and with it every purity. One thread, because the order of sums decides the last bits of the centres.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import MinMaxScaler

    scaled = MinMaxScaler((-1, 1)).fit_transform(features.detach().float().cpu().numpy())
    means = KMeans(min(clusters, len(scaled)), n_init=10, random_state=0)
    with _thread_pools().limit(limits=1), warnings.catch_warnings():
        # A dead encoder has fewer distinct features than classes: its few clusters are the answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.as_tensor(means.fit_predict(scaled)).long()


def purity(labels: Tensor, clusters: Tensor) -> float:
    """Return the share of samples with their cluster's most frequent label; both arguments `(N,)`, from 0."""
    classes = int(labels.max()) + 1
    counts = torch.bincount(clusters.cpu() * classes + labels.cpu(), minlength=(int(clusters.max()) + 1) * classes)
    return int(counts.view(-1, classes).amax(dim=1).sum()) / len(labels)


def strength(gap: float, scale: float) -> float:
    """Return the strength tanh(scale |gap|), in [0, 1], of a return after a purity gap between two parts."""
    return math.tanh(scale * abs(gap))


@torch.no_grad()
def pull_back(parameters: Mapping[str, Tensor], initial: Mapping[str, Tensor], amount: float) -> None:
    """Move every parameter in place to amount * initial + (1 - amount) * current; exact at 0 and at 1."""
    for name, parameter in parameters.items():
        parameter.lerp_(initial[name].to(parameter), amount)


def relearning_epochs(epochs: int, period: float, count: int) -> list[int]:
    """Return the epochs (from 0) after which encoders return: up to `count`, a fraction `period` apart.

    20/90 and 3, the official setting, give 20, 40 and 60 of 90. Never after the last: no training follows it.
    """
    spacing = max(1, round(period * epochs))
    return [epoch for epoch in range(spacing, spacing * count + 1, spacing) if epoch < epochs - 1]


class DiagnosingRelearning(Method):
    """Joint training in which a few epochs end with a partial return of every encoder to its initial weights.

    How far an encoder returns depends on the gap between the cluster purities of its features on training and
    validation data. All its parameters move, normalisation weights included; its buffers and the head do not.
    The move is made right before the next epoch, after the evaluation: running statistics of normalisation
    layers are stale until training goes on. Diagnosis uses un-augmented data, as the official code does
    (it trains so, too): augmented training data would shrink the gap.
    """

    info = MethodInfo(
        title="Diagnosing and Re-learning",
        paper="Wei, Li, Feng, Hu: Diagnosing and Re-learning for Balanced Multimodal Learning",
        venue="ECCV 2024",
        arxiv="2407.09705",
        origin="GeWu-Lab/Diagnosing_Relearning_ECCV2024 @ 025085ea82ed784c6ab6e5fb1b08bfe498dd0fc7",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.REINITIALISATION, Intervention.SCHEDULE, Intervention.EXTRA_PASSES}),
        changes=frozenset({"encoders"}),
    )
    noop: ClassVar[Mapping[str, object] | None] = {"strength": 0.0}

    # Script in the repository.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"strength": 3.0, "period": 20 / 90, "count": 3},
    }

    class Options(MethodOptions):
        """Strength and schedule of the returns."""

        strength: float = option(
            3.0, "lambda: a purity gap g gives a return of tanh(lambda g); 0 is joint training", ge=0
        )
        period: float = option(
            20 / 90, "fraction of the run between two returns (officially 20 of 90 epochs)", gt=0, le=1
        )
        count: int = option(3, "number of returns; the last one is then at two thirds of the run", ge=0)
        momentum: Literal["keep", "reset"] = reading(
            "keep",
            "keep: the optimiser's buffers survive a return, as in the official code, and point to where the "
            "encoder was. reset: the encoders' buffers are dropped; what the paper wants was not found.",
        )

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Refuse a run that is too short for a return: it would be joint training."""
        if options.strength > 0 and not relearning_epochs(task.epochs, options.period, options.count):
            return (
                f"makes no return within {task.epochs} epochs with period={options.period:.3g} and "
                f"count={options.count}; use more epochs or a shorter period"
            )
        return super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build the model and keep its encoders' initial parameters on the CPU."""
        model = super().build()
        self.initial = {
            m: {name: value.detach().cpu().clone() for name, value in model.encoder_parameters(m).items()}
            for m in model.modalities
        }
        return model

    def start_epoch(self, ctx: Context) -> None:
        """Move every encoder towards its initial weights if the epoch before was one that ends so."""
        if self.options.strength == 0 or ctx.epoch - 1 not in self._returns(ctx.epochs):
            return
        train, val = (self._purities(ctx, part) for part in (ctx.train, ctx.val))
        for m in ctx.model.modalities:
            parameters = ctx.model.encoder_parameters(m)
            ctx.note(f"purity gap, {m}", train[m] - val[m])
            pull_back(parameters, self.initial[m], strength(train[m] - val[m], self.options.strength))
            if self.options.momentum == "reset":
                for parameter in parameters.values():
                    ctx.optimizer.state.pop(parameter, None)

    def _returns(self, epochs: int) -> list[int]:
        return relearning_epochs(epochs, self.options.period, self.options.count)

    @staticmethod
    def _purities(ctx: Context, part: Part) -> dict[str, float]:
        """Cluster each modality's features on a part, seen without augmentation, and return the purities."""
        seen = [(batch.labels, forward.features) for batch, forward in ctx.evaluate(part)]
        labels = torch.cat([batch_labels for batch_labels, _ in seen])
        features = {m: torch.cat([values[m] for _, values in seen]) for m in ctx.model.modalities}
        return {m: purity(labels, cluster(values, ctx.task.classes)) for m, values in features.items()}

    def expected_passes(self, plan: Plan) -> Passes:
        """One forward pass over training and validation data for every return."""
        returns = len(self._returns(plan.epochs)) if self.options.strength > 0 else 0
        return Passes(forward=1.0 + returns * (plan.train + plan.val) / (plan.train * plan.epochs))

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial parameters."""
        self.initial = {m: dict(values) for m, values in state["initial"].items()}
