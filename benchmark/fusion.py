"""Fusions: how the features of all modalities become one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn


class Fusion(nn.Module):
    """Joins features `(B, d_m)` of any number of modalities into a fused vector `(B, D)`.

    Every fusion is a sum or a concatenation of one part per modality, so that the head's weights can be sliced by
    modality.
    """

    additive: ClassVar[bool]
    """Whether a modality's part depends on its own features alone."""
    widths: dict[str, int]
    """Features d_m of each modality."""
    part_widths: dict[str, int]
    """Width w_m of each modality's part."""
    concatenates: ClassVar[bool] = True

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.part_widths = dict(widths)

    @property
    def width(self) -> int:
        """Width D of the fused vector."""
        return sum(self.part_widths.values()) if self.concatenates else max(self.part_widths.values())

    @property
    def slices(self) -> dict[str, slice]:
        """Columns of the fused vector (and of the head's weight) that belong to each modality."""
        if not self.concatenates:
            return {name: slice(0, self.width) for name in self.part_widths}
        result, start = {}, 0
        for name, width in self.part_widths.items():
            result[name] = slice(start, start + width)
            start += width
        return result

    def parts(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each modality's part `(B, w_m)` after whatever interaction the fusion has."""
        raise NotImplementedError

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the fused vector `(B, D)`."""
        parts = list(self.parts(features).values())
        return torch.cat(parts, dim=1) if self.concatenates else torch.stack(parts).sum(0)


class _Projected(Fusion):
    """Shared by the fusions that need equal widths: one linear map per modality to the largest width."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__(widths)
        common = max(widths.values())
        self.part_widths = dict.fromkeys(widths, common)
        self.projections = nn.ModuleDict({name: nn.Linear(width, common) for name, width in widths.items()})

    def project(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return every modality's features in the common width."""
        return {name: self.projections[name](features[name]) for name in self.widths}


class Concat(Fusion):
    """Concatenation of the features."""

    additive = True

    def parts(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features as they are."""
        return {name: features[name] for name in self.widths}


class Sum(_Projected, Fusion):
    """Sum of the linearly projected features."""

    additive = True
    concatenates = False

    def parts(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the projections."""
        return self.project(features)


class FiLM(_Projected, Fusion):
    """Each modality scaled and shifted by the mean projection of the others (Perez et al., AAAI 2018), concatenated.

    Symmetric in the modalities, so that every modality keeps a slice of the head.
    """

    additive = False

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__(widths)
        common = max(widths.values())
        self.conditions = nn.ModuleDict({name: nn.Linear(common, 2 * common) for name in widths})

    def parts(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return (1 + gamma_m) h_m + beta_m with gamma, beta from the other modalities."""
        hidden = self.project(features)
        result = {}
        for name, value in hidden.items():
            gamma, beta = self.conditions[name](_others(hidden, name)).chunk(2, dim=1)
            result[name] = (1 + gamma) * value + beta
        return result


class Gated(_Projected, Fusion):
    """Each modality's projection gated by the sigmoid of the others' mean (Kiela et al., AAAI 2018), concatenated."""

    additive = False

    def parts(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sigmoid(mean of the others) * h_m."""
        hidden = self.project(features)
        return {name: torch.sigmoid(_others(hidden, name)) * value for name, value in hidden.items()}


def _others(hidden: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the mean `(B, w)` over all modalities but one; zeros where there is no other."""
    others = [value for other, value in hidden.items() if other != name]
    return torch.stack(others).mean(0) if others else torch.zeros_like(hidden[name])
