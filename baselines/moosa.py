"""MOOSA: SimMMDG with predictors weighted by their entropy, a jigsaw of all modalities, and masked translation.

Dong, Chatzi, Fink: "Towards Multimodal Open-Set Domain Generalization and Adaptation through Self-supervision",
ECCV 2024. Read from the official code, and used with the target's classes known. Predictors are the modalities' own
heads and the fused one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.simmmdg import SimMMDG
from benchmark.heads import applied
from benchmark.method import Intervention, MethodInfo, option, reading
from benchmark.model import perceptron

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.model import MultimodalModel
    from benchmark.task import Task


def entropies(logits: Tensor) -> Tensor:
    """Return the entropies (nats) of soft-maxed logits `(..., C)`."""
    logarithms = logits.log_softmax(-1)
    return -(logarithms.exp() * logarithms).sum(-1)


def confidence_weights(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return weights `(N, B)` that sum to 1 over predictors, from logits `(N, B, C)`: larger for lower entropy."""
    return (-entropies(logits) / temperature).softmax(0)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over predictors of cross-entropies, batch mean, from `(N, B, C)`, `(B,)`, `(N, B)`."""
    losses = functional.cross_entropy(logits.movedim(-1, 1), labels.expand(len(logits), -1), reduction="none")
    return (weights * losses).sum(0).mean()


def softened_entropy(logits: Tensor) -> Tensor:
    """Return the mean of -p log(p + 1e-5), summed over classes, over predictors and batch, from `(N, B, C)`."""
    probabilities = logits.softmax(-1)
    return -(probabilities * (probabilities + 1e-5).log()).sum(-1).mean()


def drawn_permutations(pieces: int, count: int) -> list[list[int]]:
    """Draw different permutations of the numbers below `pieces` from the process's random stream."""
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        drawn[tuple(torch.randperm(pieces).tolist())] = None
    return [list(permutation) for permutation in drawn]


def permuted_columns(widths: Sequence[int], chunks: int, permutations: Sequence[Sequence[int]]) -> Tensor:
    """Return which column stands where `(P, sum of widths)` when the chunks of all modalities are permuted.

    Chunks of a modality are as equal as its width allows, and are numbered modality by modality.
    """
    starts = [0, *accumulate(widths)][:-1]
    columns = [torch.arange(width) + start for width, start in zip(widths, starts, strict=True)]
    pieces = [piece for whole in columns for piece in whole.tensor_split(chunks)]
    return torch.stack([torch.cat([pieces[place] for place in permutation]) for permutation in permutations])


def jigsaw(features: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return every permutation of each sample's features, `(B P, D)`, and its number `(B P,)`, from `(B, D)`."""
    return features[:, columns].flatten(0, 1), torch.arange(len(columns), device=columns.device).repeat(len(features))


def masked(features: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Return features `(B, d)`, each entry zeroed with probability `ratio`; what is kept is not scaled."""
    return features * (torch.rand(features.shape, generator=generator) >= ratio).to(features)


class MOOSA(SimMMDG):
    """SimMMDG whose classification is weighted by entropy, with jigsaw, low entropy and masked translation.

    The permutations are drawn with the initialisation. The jigsaw's classifier sees features in the dataset's order.
    """

    info = MethodInfo(
        title="MOOSA",
        paper="Dong, Chatzi, Fink: Towards Multimodal Open-Set Domain Generalization and Adaptation through "
        "Self-supervision",
        venue="ECCV 2024",
        arxiv="2407.01518",
        origin="donghao51/MOOSA @ 981b0ccd5557d44ed11626843afa06e0b671eb5e",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS}),
        changes=frozenset({"encoders", "fusion", "head"}),
    )
    noop = None

    # The command of every target of EPIC-Kitchens; those of HAC differ by target.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {"epic_kitchens": {"mask_ratio": 0.7}}

    class Options(SimMMDG.Options):
        """Those of SimMMDG; weights and sizes of what is added, and readings."""

        mask_ratio: float = option(
            0.3,
            "Probability with which an entry of the features is zero for the translators. Officially 0.7 on "
            "EPIC-Kitchens, on HAC 0.3, and 0.7 where animals are the target.",
            ge=0,
            le=1,
        )
        entropy_weight: float = option(
            0.001, "Weight of the entropies (official, but 1 for one target of EPIC-Kitchens).", ge=0
        )
        entropy_temperature: float = option(
            1.0, "Temperature of the weights of predictors (official); a large one makes them equal.", gt=0
        )
        jigsaw_weight: float = option(1.0, "Weight of the jigsaw (official).", ge=0)
        jigsaw_permutations: int = option(
            128, "Permutations that the jigsaw tells apart (official); every sample is shown in each.", ge=2
        )
        jigsaw_hidden: int = option(512, "Units of the hidden layer of the jigsaw's classifier (official).", ge=1)
        jigsaw_chunks: Literal["four", "by modalities"] = reading(
            "by modalities",
            "Chunks of each modality: `four` (paper), or `by modalities`, four where there are two and two where there "
            "are more (author, issue #2; the code lists all orders, and cannot list 12!). Default: what was run.",
        )
        weights: Literal["attached", "detached"] = reading(
            "attached",
            "Whether the predictors' weights receive gradients: `attached`, a wrong predictor may also become unsure "
            "(code), or `detached` (ours). Default `attached`: what was run.",
        )

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:  # type: ignore[override]  # options of its own
        """Return whether there are as many permutations, and what SimMMDG would refuse."""
        most = math.factorial(len(task.modalities) * _chunks(options, task))
        if options.jigsaw_permutations > most:
            return (
                f"has {most} permutations of chunks, found jigsaw_permutations={options.jigsaw_permutations}; lower it"
            )
        return super().refuses(options, task)

    @classmethod
    def sample_options(cls, task: Task) -> dict[str, object]:
        """Return SimMMDG's, and a jigsaw as small as the encoders of conformance runs."""
        return {**super().sample_options(task), "jigsaw_hidden": 8, "jigsaw_permutations": 4}

    def build(self) -> MultimodalModel:
        """Build SimMMDG's model with unimodal heads, and then the jigsaw's classifier and permutations."""
        options, widths, chunks = self.options, list(self.task.widths.values()), _chunks(self.options, self.task)
        model = super().build()
        model.jigsaw = perceptron(sum(widths), options.jigsaw_hidden, options.jigsaw_permutations)
        drawn = drawn_permutations(len(widths) * chunks, options.jigsaw_permutations)
        model.register_buffer("jigsaw_columns", permuted_columns(widths, chunks, drawn))
        return model

    def _trunk(self) -> MultimodalModel:
        return self.task.build_model(unimodal_heads=True)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the weighted classification, and each of the others whose weight is not 0."""
        options, model = self.options, ctx.model
        logits = torch.stack([*forward.unimodal.values(), forward.logits])
        weights = confidence_weights(logits, options.entropy_temperature)
        for name, values in zip((*forward.unimodal, "all"), weights.detach().mean(1), strict=True):
            ctx.note(f"weight, {name}", values)
        if options.weights == "detached":
            weights = weights.detach()
        losses = {"classification": weighted_cross_entropy(logits, batch.labels, weights)}
        if options.entropy_weight:
            losses["entropy"] = options.entropy_weight * softened_entropy(logits)
        if options.jigsaw_weight:
            joined = torch.cat(list(forward.features.values()), dim=1)
            rows, numbers = jigsaw(joined, cast(Tensor, model.jigsaw_columns))
            guesses = applied(cast(nn.Module, model.jigsaw), rows, ctx)
            losses["jigsaw"] = options.jigsaw_weight * functional.cross_entropy(guesses, numbers)
        return losses | self.on_features(forward, batch, ctx)

    def translated(self, features: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Return the features `(B, d_m)` with entries masked, anew for each modality and step."""
        return {m: masked(values, self.options.mask_ratio, ctx.stream("masks")) for m, values in features.items()}

    def supervises(self, loss: str) -> bool:
        """Return whether it is the weighted classification."""
        return loss == "classification"


def _chunks(options: MOOSA.Options, task: Task) -> int:
    return 2 if options.jigsaw_chunks == "by modalities" and len(task.modalities) > 2 else 4
