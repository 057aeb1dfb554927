"""What a method is asked to learn, without the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from benchmark.fusion import Concat, Fusion
from benchmark.model import MultimodalModel, perceptron


@dataclass(frozen=True)
class Task:
    """Modalities, classes and how to build their encoders and fusion.

    `backbone` maps (modality, shape of one sample) to an encoder that states its number of features as `width`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    classes: int
    epochs: int
    backbone: Callable[[str, tuple[int, ...]], nn.Module]
    fusion: type[Fusion] = Concat
    domains: tuple[str, ...] = ()
    """Source domains of the training data, empty where these have none."""
    hidden: int | None = None
    """Units of the hidden layer of head and discriminator; None is a linear head."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the dataset's order."""
        return tuple(self.shapes)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Features d_m of each modality's encoder, found without allocating one."""
        with torch.device("meta"):
            return {name: int(self.backbone(name, shape).width) for name, shape in self.shapes.items()}  # type: ignore[arg-type]

    def encoders(self) -> dict[str, nn.Module]:
        """Build one fresh encoder per modality."""
        return {name: self.backbone(name, shape) for name, shape in self.shapes.items()}

    def build_model(
        self, unimodal_heads: bool = False, model_class: type[MultimodalModel] = MultimodalModel
    ) -> MultimodalModel:
        """Build a freshly initialised model from the current random state."""
        model = model_class(self.encoders(), self.fusion, self.classes, unimodal_heads)
        # A model class of a method's own has the head that the method is about.
        if self.hidden is not None and model_class is MultimodalModel:
            model.head = self.build_head(model.fusion.width)  # type: ignore[assignment]
        return model

    def build_head(self, width: int) -> nn.Module:
        """Build what maps `(B, width)` to logits `(B, C)` as the fused head does: linear, or with the hidden layer."""
        return _map(width, self.hidden, self.classes)

    def build_discriminator(self, width: int) -> nn.Module | None:
        """Build what tells the source domains from the fused vector `(B, width)`; None where there is one or none."""
        if len(self.domains) < 2:
            return None
        return _map(width, self.hidden, len(self.domains))


def _map(width: int, hidden: int | None, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs) if hidden is None else perceptron(width, hidden, outputs)
