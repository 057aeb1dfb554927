"""Active learning, BMMAL: three-way training, and a choice of samples that prefers balanced ones.

Shen, Huang, Yin, Zou, Rajan, See: "Towards Balanced Active Learning for Multimodal Classification", ACM Multimedia
2023. A sample's gradient embedding is the outer product of a residual `(C,)` and the scaled features `(D,)`. All
distances follow from these two factors, so the product, C D numbers per sample, is never built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from math import factorial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark import seeding
from benchmark.evaluation import evaluate
from benchmark.method import (
    Intervention,
    Method,
    MethodInfo,
    MethodOptions,
    Passes,
    Plan,
    option,
    reading,
    unimodal_losses,
)
from benchmark.model import MultimodalModel

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

Coalition = frozenset[str]
Strategy = Literal["bmmal", "badge", "random"]


def coalitions(modalities: Iterable[str]) -> list[Coalition]:
    """Return all subsets of the modalities, from none to all."""
    names = list(modalities)
    return [frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)]


def shapley(values: Mapping[Coalition, Tensor]) -> dict[str, Tensor]:
    """Return each modality's Shapley value `(B, C)` from the predictions `(B, C)` of every coalition."""
    everyone = max(values, key=len)
    count = len(everyone)
    result = {}
    for m in sorted(everyone):
        gains = [
            factorial(len(s)) * factorial(count - len(s) - 1) / factorial(count) * (values[s | {m}] - values[s])
            for s in values
            if m not in s
        ]
        result[m] = torch.stack(gains).sum(0)
    return result


def contributions(phi: Mapping[str, Tensor], classes: Tensor) -> dict[str, Tensor]:
    """Return each modality's share `(B,)` of the absolute Shapley values `(B, C)` at the given classes `(B,)`."""
    sizes = {m: values.gather(1, classes[:, None]).squeeze(1).abs() + 1e-12 for m, values in phi.items()}
    whole = torch.stack(list(sizes.values())).sum(0)
    return {m: size / whole for m, size in sizes.items()}


def dominance_scales(shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each modality's factor `(B,)`: 1 for the strongest, less by its distance in contribution for others."""
    strongest = torch.stack(list(shares.values())).amax(0)
    return {m: 1 - (strongest - share) for m, share in shares.items()}


def spread(residuals: Tensor, features: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return `count` distinct positions chosen by k-means++ from the embeddings residual x feature.

    `residuals` are `(N, C)`, `features` `(N, D)`. The longest embedding comes first, each next one is drawn with a
    probability proportional to the squared distance from the nearest chosen one; uniform where all are zero.
    """
    r, z = residuals.double(), features.double()
    squares = r.square().sum(1) * z.square().sum(1)
    nearest, free = torch.full_like(squares, torch.inf), torch.ones_like(squares)
    chosen: list[int] = []
    while len(chosen) < min(count, len(squares)):
        if chosen:
            chances = (nearest * free if (nearest * free).any() else free).cpu()
            pick = int(torch.multinomial(chances, 1, generator=generator))
        else:
            pick = int(squares.argmax())
        chosen.append(pick)
        free[pick] = 0
        nearest = nearest.minimum((squares + squares[pick] - 2 * (r @ r[pick]) * (z @ z[pick])).clamp_min(0))
    return torch.tensor(chosen, dtype=torch.int64)


def label_counts(samples: int, initial: float, added: float, rounds: int) -> list[int]:
    """Return the number of labelled samples in every round, from fractions of all samples."""
    return [min(samples, max(1, round((initial + added * r) * samples))) for r in range(rounds)]


class ActiveLearning(Method):
    """Trains the fused and all unimodal heads with equal weights, on all labels or on chosen ones.

    With `mode=budget` the run is the last round: it starts from the initial weights that all methods share, on the
    labels that earlier rounds have chosen. Those train fresh models, each for as many epochs as the run.
    """

    info = MethodInfo(
        title="Active learning (BMMAL)",
        paper="Shen, Huang, Yin, Zou, Rajan, See: Towards Balanced Active Learning for Multimodal Classification",
        venue="ACM MM 2023",
        arxiv="2306.08306",
        origin="MengShen0709/bmmal @ 5c226cf68f307411db21a241904ffbec7cb171db",
        licence="CC BY 4.0",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS, Intervention.DATA, Intervention.EXTRA_PASSES}),
        changes=frozenset({"encoders", "fusion", "head"}),
    )

    # Configurations in the repository; they count with mode=budget.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "kinetics_sounds": {"initial": 1000 / 14739, "added": 1000 / 14739},
    }

    class Options(MethodOptions):
        """What is labelled, and by whom it is chosen."""

        mode: Literal["full", "budget", "sampler"] = reading(
            "full",
            "`full`: every label, where choosing samples has no meaning and the three-way loss is what remains. "
            "`budget`: the paper's protocol, rounds of training and choosing. `sampler` (experimental, ours): every "
            "label, but each epoch trains on a chosen share, with true labels in place of predicted ones. Default "
            "`full`: a table with full supervision; how RGM made a row of the method was not found.",
        )
        strategy: Strategy = option(
            "bmmal",
            "Who chooses in `budget` and `sampler`: the method, BADGE (all factors 1), or chance.",
        )
        initial: float = option(
            0.07, "`budget`: share of the samples labelled at random first. Kinetics-Sounds: 1000 of 14739.", gt=0, le=1
        )
        added: float = option(0.07, "`budget`: share of the samples that a round adds (1000 of 14739).", ge=0, le=1)
        rounds: int = option(5, "`budget`: rounds of training, the run included. An argument in the code.", ge=1)
        drawn: float = option(0.5, "`sampler`: share of the samples that an epoch trains on.", gt=0, le=1)

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        """Start with nothing labelled."""
        super().__init__(options, task)
        self.chosen = torch.empty(0, dtype=torch.int64)

    def build(self) -> MultimodalModel:
        """Build the model with unimodal heads, which start Xavier-uniform with bias 0.01."""
        model = self.task.build_model(unimodal_heads=True)
        for parameter in model.unimodal_heads.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.constant_(parameter, 0.01)
        return model

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused and the unimodal losses, each divided by their number."""
        parts = super().losses(forward, batch, ctx) | unimodal_losses(forward, batch.labels)
        return {name: loss / len(parts) for name, loss in parts.items()}

    def start_epoch(self, ctx: Context) -> None:
        """Choose the samples of the run (`budget`) or of the epoch (`sampler`)."""
        if self.options.mode == "sampler":
            count = label_counts(len(ctx.train), self.options.drawn, 0, 1)[0]
            self.chosen = self._choose(torch.arange(len(ctx.train)), count, ctx, ctx, true_classes=True)
        elif self.options.mode == "budget" and ctx.epoch == 0:
            counts = self._counts(len(ctx.train))
            self.chosen = torch.randperm(len(ctx.train), generator=ctx.generator)[: counts[0]]
            for number, count in enumerate(counts[1:]):
                side = self._round(number, ctx)
                pool = ctx.train.others(self.chosen)
                self.chosen = torch.cat([self.chosen, self._choose(pool, count - len(self.chosen), side, ctx)])

    def _counts(self, samples: int) -> list[int]:
        return label_counts(samples, self.options.initial, self.options.added, self.options.rounds)

    def _round(self, number: int, ctx: Context) -> Context:
        """Train a fresh model on the samples chosen so far and return its context."""
        with seeding.isolated():
            torch.manual_seed(int(torch.randint(2**62, (), generator=ctx.generator)))
            model = self.build().to(ctx.train.labels.device).train()
        trained, epochs = dict(model.named_parameters()), range(ctx.epochs)
        side = ctx.train_aside(model, trained, f"round {number}", self.step, epochs=epochs, indices=self.chosen)
        accuracy = evaluate(self, model, ctx.val, ctx.plan.batch_size)["accuracy"]
        ctx.note(f"validation accuracy, {len(self.chosen)} labels", accuracy)
        return side

    def _choose(self, pool: Tensor, count: int, judge: Context, ctx: Context, *, true_classes: bool = False) -> Tensor:
        """Return `count` of the training samples at `pool`, chosen with the model of `judge`."""
        if self.options.strategy == "random" or not len(pool):
            return pool[torch.randperm(len(pool), generator=ctx.generator)[:count]]
        factors = [
            self._factors(forward, batch.labels if true_classes else None, judge)
            for batch, forward in judge.evaluate(ctx.train.subset(pool))
        ]
        residuals, features = (torch.cat(values) for values in zip(*factors, strict=True))
        return pool[spread(residuals, features, count, ctx.generator)]

    def _factors(self, forward: Forward, classes: Tensor | None, judge: Context) -> tuple[Tensor, Tensor]:
        """Return the embeddings' factors: residuals `(B, C)` at the given or predicted classes, features `(B, D)`."""
        features = forward.features
        with judge.run.autocast():
            logits = {
                some: forward.model.classify({m: z if m in some else torch.zeros_like(z) for m, z in features.items()})
                for some in coalitions(features)
            }
        values = {some: value.double().softmax(1) for some, value in logits.items()}
        prediction = values[frozenset(features)]
        classes = prediction.argmax(1) if classes is None else classes
        residuals = prediction - functional.one_hot(classes, prediction.shape[1])
        if self.options.strategy == "badge":
            return residuals, torch.cat(list(features.values()), dim=1)
        scales = dominance_scales(contributions(shapley(values), classes))
        return residuals, torch.cat([scales[m][:, None] * z for m, z in features.items()], dim=1)

    def batches(self, ctx: Context) -> Iterable[Batch]:
        """Return the batches of all samples or of the chosen ones."""
        return ctx.batches(indices=None if self.options.mode == "full" else self.chosen)

    def expected_passes(self, plan: Plan) -> Passes:
        """Return what the chosen samples, earlier rounds, their validation and the choices cost."""
        asks = self.options.strategy != "random"
        if self.options.mode == "full":
            return Passes()
        if self.options.mode == "sampler":
            share = label_counts(plan.train, self.options.drawn, 0, 1)[0] / plan.train
            return Passes(share + asks, share)
        counts = self._counts(plan.train)
        looks = sum(plan.val + asks * (plan.train - count) for count in counts[:-1])
        trained = sum(counts) / plan.train
        return Passes(trained + looks / (plan.train * plan.epochs), trained)

    def state_dict(self) -> dict[str, Any]:
        """Return the chosen samples."""
        return {"chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the chosen samples."""
        self.chosen = state["chosen"]
