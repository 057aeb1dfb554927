"""Images and videos for encoders of images: the frames of a video become a longer batch."""

from __future__ import annotations

from torch import Tensor

from benchmark.errors import UsageError


def channels_and_frames(backbone: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return C and T of samples `(C, T, H, W)`, or `(C, H, W)` with one frame; raises UsageError for other shapes."""
    if len(shape) not in (3, 4):
        raise UsageError(
            f"Backbone {backbone!r} needs samples of shape (C, H, W) or, for video, (C, T, H, W). Found {shape}. "
            "Use another backbone."
        )
    return shape[0], shape[1] if len(shape) == 4 else 1


def merged(inputs: Tensor, frames: int) -> Tensor:
    """Return `(B, C, T, H, W)` as `(B * T, C, H, W)`, and images `(B, C, H, W)` as they are."""
    if inputs.ndim == 4:
        return inputs
    # The length is spelt out so that another number of frames than the encoder's cannot mix samples.
    return inputs.transpose(1, 2).reshape(len(inputs) * frames, inputs.shape[1], *inputs.shape[3:])


def averaged(features: Tensor, frames: int) -> Tensor:
    """Return the mean `(B, d)` of features `(B * T, d)` over the frames of each sample."""
    mean: Tensor = features.unflatten(0, (-1, frames)).mean(1)
    return mean
