"""SimMMDG: halves of each feature vector, one that modalities share and one of a modality's own.

Dong, Nejjar, Sun, Chatzi, Fink: "SimMMDG: A Simple and Effective Framework for Multi-modal Domain Generalization",
NeurIPS 2023. Read from the official code. Shared halves of a class are pulled together, the two halves of a modality
pushed apart, and every modality's features are translated into every other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.alignment import supervised_contrast, unit_distance
from benchmark.heads import Shares, applied, drop_features, misnamed, projection
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.model import MultimodalModel
    from benchmark.task import Task


def closeness(features: Tensor) -> Tensor:
    """Return minus the mean squared difference of the two halves of features `(B, d)`: it has no lower bound."""
    shared, own = features.chunk(2, dim=1)
    return -functional.mse_loss(shared, own)


def translator(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build what translates features `(B, width)` into another modality's `(B, outputs)`."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, outputs),
    )


class SimMMDG(Method):
    """Joint training with supervised contrast of shared halves, distance of the halves, and translation.

    The fused head is the protocol's, without the official dropout of 0.5 in its hidden layer.
    """

    info = MethodInfo(
        title="SimMMDG",
        paper="Dong, Nejjar, Sun, Chatzi, Fink: SimMMDG: A Simple and Effective Framework for Multi-modal Domain "
        "Generalization",
        venue="NeurIPS 2023",
        arxiv="2310.19795",
        origin="donghao51/SimMMDG @ fbca1f060ce9aa32fef21b9556b18ef70c4a6579",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.LOSS}),
        changes=frozenset({"encoders"}),
    )
    noop: ClassVar[Mapping[str, object] | None] = {
        "contrast_weight": 0.0,
        "translation_weight": 0.0,
        "distance_weight": 0.0,
    }
    adversarial = False

    class Options(MethodOptions):
        """Weights, and sizes of the heads."""

        contrast_weight: float = option(
            3.0, "Weight of the contrast (official), which has a factor temperature / 0.07 besides.", ge=0
        )
        temperature: float = option(0.1, "Temperature of the contrast (official).", gt=0)
        translation_weight: float = option(0.1, "Weight of the translation (official).", ge=0)
        distance_weight: float = option(0.7, "Weight of the distance of the halves (official).", ge=0)
        hidden: int = option(2048, "Units of the projections' hidden layers, for 512 to 2304 features.", ge=1)
        out: int = option(128, "Features that are contrasted.", ge=1)
        translator_hidden: int = option(2048, "Units of the translators' hidden layers.", ge=1)
        feature_dropout: Shares = option(
            {},
            "Share of its features that a modality drops in training, before fusion and all losses. Officially 0.5 for "
            "video and flow, none for audio, in the backbones' heads; those here have none.",
        )

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return which features have no halves, and which dropout is for no modality of the task."""
        odd = {m: width for m, width in task.widths.items() if width % 2}
        if odd:
            return f"halves the features and needs even widths, found {odd}; use another backbone"
        return misnamed(options.feature_dropout, task.modalities) or super().refuses(options, task)

    @classmethod
    def sample_options(cls, task: Task) -> dict[str, object]:
        """Return heads as small as the encoders of conformance runs, and weights for their learning rate.

        It is 500 times the official one, and the distance has no bound: halves would run away from each other.
        """
        heads = {"hidden": 16, "out": 8, "translator_hidden": 16}
        return {**heads, "contrast_weight": 0.3, "distance_weight": 0.003}

    def build(self) -> MultimodalModel:
        """Build the model, and then the projections and translators."""
        options, widths = self.options, self.task.widths
        model = self._trunk()
        drop_features(model, options.feature_dropout)
        model.projections = nn.ModuleDict(
            {m: projection(width // 2, options.hidden, options.out) for m, width in widths.items()}
        )
        model.translators = nn.ModuleDict(
            {
                f"{source} to {target}": translator(widths[source], options.translator_hidden, widths[target])
                for source, target in permutations(widths, 2)
            }
        )
        return model

    def _trunk(self) -> MultimodalModel:
        return self.task.build_model()

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss, and each of the others whose weight is not 0."""
        return super().losses(forward, batch, ctx) | self.on_features(forward, batch, ctx)

    def on_features(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the weighted losses that teach no class, of those whose weight is not 0."""
        options, model, features = self.options, ctx.model, forward.features
        losses: dict[str, Tensor] = {}
        if options.contrast_weight:
            heads = cast(nn.ModuleDict, model.projections)
            shared = {m: values.chunk(2, dim=1)[0] for m, values in features.items()}
            views = [functional.normalize(applied(heads[m], half, ctx), dim=1) for m, half in shared.items()]
            contrast = supervised_contrast(views, batch.labels, options.temperature)
            losses["contrast"] = options.contrast_weight * contrast
        if options.translation_weight:
            heads = cast(nn.ModuleDict, model.translators)
            sources = self.translated(features, ctx)
            distances = [
                unit_distance(applied(heads[f"{source} to {target}"], sources[source], ctx), features[target])
                for source, target in permutations(features, 2)
            ]
            losses["translation"] = options.translation_weight * torch.stack(distances).mean()
        if options.distance_weight:
            parts = torch.stack([closeness(values) for values in features.values()])
            losses["distance"] = options.distance_weight * parts.mean()
        return losses

    def translated(self, features: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Return what the translators are given: the features `(B, d_m)` themselves."""
        return features

    def supervises(self, loss: str) -> bool:
        """Return whether it is the fused loss."""
        return loss == "fused"
