"""The small encoder of the embedded datasets."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import Backbone
from benchmark.errors import UsageError

CHANNELS = (16, 32, 64)
SIDE = 4
"""A map side up to this length is kept: position matters for digits."""
LARGE = 40
"""A map side above this length shrinks by four at once, a shorter one by two."""


class Small(Backbone):
    """Two strided convolutions, a third for large maps, then a projection of the whole last map to 64 features.

    No batch normalisation, so a last batch of one sample trains like any other; layers start Kaiming-normal with zero
    bias. The same class serves 3 x 8 strips of digits and 129 x 64 spectrograms; a last map that is still longer than 4
    is averaged down to it.
    """

    width = 64

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if len(shape) != 3:
            raise UsageError(f"Backbone 'small' needs samples of shape (C, H, W). Found {shape}. Use another backbone.")
        channels, height, width = shape
        self.convolutions = nn.ModuleList()
        self.stage_widths = CHANNELS[: 2 if max(height, width) <= 4 * SIDE else 3]
        for out in self.stage_widths:
            strides = _stride(height), _stride(width)
            kernels = max(3, strides[0] + 1), max(3, strides[1] + 1)
            padding = kernels[0] // 2, kernels[1] // 2
            self.convolutions.append(nn.Conv2d(channels, out, kernels, stride=strides, padding=padding))
            channels, height, width = out, math.ceil(height / strides[0]), math.ceil(width / strides[1])
        self.average = math.ceil(height / SIDE), math.ceil(width / SIDE)
        cells = math.ceil(height / self.average[0]) * math.ceil(width / self.average[1])
        self.project = nn.Linear(channels * cells, self.width)
        for layer in (*self.convolutions, self.project):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Run one convolution: a map `(B, c, h, w)` without negative values."""
        return functional.relu(self.convolutions[number](hidden))

    def pool(self, hidden: Tensor) -> Tensor:
        """Project the whole last map to features `(B, 64)`, none negative."""
        if self.average != (1, 1):
            hidden = functional.avg_pool2d(hidden, self.average, ceil_mode=True)
        return functional.relu(self.project(hidden.flatten(1)))


def _stride(side: int) -> int:
    return 1 if side <= SIDE else 2 if side <= LARGE else 4
