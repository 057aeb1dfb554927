"""Backbones: what turns one modality's input into features `(B, d)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from torch import Tensor, nn

from benchmark.frozen import keep_still

if TYPE_CHECKING:
    from benchmark.dataset import Source


class Backbone(nn.Module):
    """Encoder of one modality, built for the shape of one sample: `(C, H, W)`, `(C, T, H, W)` or `(d,)`.

    Subclasses set `width`, the number of features d they return. One with stages sets `stage_widths`, the channels of
    the map after each stage, and implements `stage` and `pool`: several encoders can then be advanced in lockstep, with
    something between their stages. A caller that ran the stages below `k` itself finishes with `encoder(map, first=k)`,
    never with `pool`: passes are counted where the encoder is called. One without stages overrides `forward`.

    A map is `(N, c, *positions)`, or `(N, positions, c)` where `channels_last` says so, as in transformers. N is B, or
    B * T where the T frames of a sample follow one another.

    `weights` names the published states that `equipoise fetch` can bring; one with any implements `load`. A backbone
    whose encoders differ with the shape names several files, one per kind of encoder, and implements `source`.
    """

    width: int
    stage_widths: tuple[int, ...] = ()
    channels_last: ClassVar[bool] = False
    weights: ClassVar[Mapping[str, tuple[Source, ...]]] = {}

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self._still: list[nn.Module] = []

    @classmethod
    def source(cls, weights: str, shape: tuple[int, ...]) -> Source:
        """Return the file of the published `weights` that an encoder of this shape starts from."""
        (only,) = cls.weights[weights]
        return only

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Return the map after stage `number` from the one before it; stage 0 takes a batch `(B, *shape)`."""
        raise NotImplementedError

    def pool(self, hidden: Tensor) -> Tensor:
        """Map what the last stage returned to features `(B, d)`."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, first: int = 0) -> Tensor:
        """Map a batch `(B, *shape)`, or the map before stage `first`, to features `(B, d)`."""
        hidden = inputs
        for number in range(first, len(self.stage_widths)):
            hidden = self.stage(number, hidden)
        return self.pool(hidden)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a published state, as `weights.pretrained` reads it; raises DataError for one that does not fit."""
        raise NotImplementedError

    def start(self, weights: str, state: Mapping[str, Tensor]) -> None:
        """Begin from the published state that `weights` names; by default by training on all of it."""
        self.load(state)

    def freeze(self, *trained: nn.Module, moving: bool = False) -> None:
        """Leave all of the encoder as it is but the modules `trained`: its other parameters are buffers from then on.

        So no method can train, count, clip or decay them. Their batch norms keep their statistics and use these in
        training too, or with `moving` go on as in an encoder that is trained.
        """
        kept = {module for part in trained for module in part.modules()}
        still = [module for module in self.modules() if module not in kept]
        keep_still(still)
        self._still = [] if moving else still
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch to training, or to evaluation, all but what is frozen."""
        super().train(mode)
        for module in self._still:
            module.training = False
        return self

    def squeeze(self, hidden: Tensor, batch: int) -> Tensor:
        """Return the mean `(B, c)` of a map of `batch` samples over the positions and frames of each."""
        frames: Tensor = hidden.unflatten(0, (batch, -1))
        channels = frames.ndim - 1 if self.channels_last else 2
        return frames.mean([axis for axis in range(1, frames.ndim) if axis != channels])

    def excite(self, hidden: Tensor, gate: Tensor) -> Tensor:
        """Return a map with its channels multiplied by `gate` `(B, c)`, alike at all positions and frames."""
        frames: Tensor = hidden.unflatten(0, (len(gate), -1))
        positions = (1,) * (hidden.ndim - 2)
        factors = (*positions, gate.shape[1]) if self.channels_last else (gate.shape[1], *positions)
        return (frames * gate.reshape(len(gate), 1, *factors)).flatten(0, 1)
