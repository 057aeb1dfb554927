"""MMCosine: the linear head replaced by a scaled sum of per-modality cosine similarities.

Xu, Feng, Zhang, Hu: "Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained Learning",
ICASSP 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.gradients import NEGLIGIBLE_NORM
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading
from benchmark.model import MultimodalModel

Evaluation = Literal["cosine", "linear"]


def directions(rows: Tensor) -> Tensor:
    """Return rows `(N, d)` at unit length; rows shorter than 1e-12 become zeros that pass no gradient."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms > NEGLIGIBLE_NORM, rows / norms.clamp_min(NEGLIGIBLE_NORM), 0.0)


def cosine_logits(features: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Return scaled cosines `(B, C)` of one modality's features `(B, d)` and class vectors `(C, d)`.

    The fused logits are their sum over the modalities.
    """
    return scale * functional.linear(directions(features), directions(weight))


def smallest_scale(classes: int, posterior: float, modalities: int = 2) -> float:
    """Return the scale from which a softmax can reach `posterior`, in (1 / C, 1), in the best case.

    There the class vectors are a regular simplex with the features on it. The project page prints a looser
    bound, with C + 1 in place of C.
    """
    return (classes - 1) / (modalities * classes) * math.log((classes - 1) * posterior / (1 - posterior))


def reachable_posterior(classes: int, scale: float, modalities: int = 2) -> float:
    """Return the largest softmax probability that `scale` allows: the inverse of `smallest_scale`."""
    return 1 / (1 + (classes - 1) * math.exp(-modalities * scale * classes / (classes - 1)))


class CosineModel(MultimodalModel):
    """Logits from cosines between each modality's part and its slice of the head; the bias is unused."""

    scale: float = 10.0
    evaluation: Evaluation = "cosine"

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the sum `(B, C)` of scaled cosines; "linear" evaluates the plain head instead."""
        if self.evaluation == "linear" and not self.training:
            return super().classify(features)
        return torch.stack(list(self._cosines(features).values())).sum(0)

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scaled cosines `(B, C)` of each modality in `features`."""
        cosines = self._cosines(features)
        return {name: cosines[name] for name in features}

    def _cosines(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts, slices = self.fusion.parts(self.completed(features)), self.fusion.slices
        return {m: cosine_logits(part, self.head.weight[:, slices[m]], self.scale) for m, part in parts.items()}


class MMCosine(Method):
    """Trains and judges by cosines, so that no modality can win by the norm of its weights or features."""

    info = MethodInfo(
        title="MMCosine",
        paper="Xu, Feng, Zhang, Hu: MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual "
        "Fine-Grained Learning",
        venue="ICASSP 2023",
        arxiv="2303.05338",
        origin="GeWu-Lab/MMCosine_ICASSP23 @ 00ba0a9cbd9b866b5017e972a1266d7b664bf86e",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.FORWARD}),
        changes=frozenset({"encoders", "fusion", "head"}),
        linear_head=True,
    )

    # Scripts in the repository, concat fusion.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"scale": 10.0},
        "voxceleb2": {"scale": 10.0},
    }

    class Options(MethodOptions):
        """Scale, and which logits are judged."""

        scale: float = option(
            10.0,
            "Factor s on the cosines. Official: 10, about 50 for gated and FiLM fusion; peers: 15.",
            gt=0,
        )
        evaluation: Evaluation = reading(
            "cosine",
            "Logits that are judged. `linear`: the plain head with its untrained bias, as the CREMA-D script "
            "does by mistake. Default `cosine`: paper, VoxCeleb2 script and other implementations.",
        )

    options: Options

    def build(self) -> MultimodalModel:
        """Build the model with cosine logits."""
        model = self.task.build_model(model_class=CosineModel)
        assert isinstance(model, CosineModel)
        model.scale, model.evaluation = self.options.scale, self.options.evaluation
        return model

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        """Return all parameters but the head's bias, which no logit contains."""
        return {name: value for name, value in super().parameters(model).items() if name != "head.bias"}
