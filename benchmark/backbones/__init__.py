"""Backbones: what turns one modality's input into features `(B, d)`."""

from __future__ import annotations

from torch import Tensor, nn


class Backbone(nn.Module):
    """Encoder of one modality, built for the shape of one sample `(C, H, W)` or `(d,)`.

    Subclasses set `width`, the number of features d they return.
    """

    width: int

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a batch `(B, *shape)` to features `(B, d)`."""
        raise NotImplementedError
