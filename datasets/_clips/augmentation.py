"""How training sees and hears a window of action: cropped, perhaps mirrored, with noise and a mute band."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from datasets._clips.views import draw_views

NOISE = 0.05
"""Half the width of the noise on spectrograms, whose standard deviation is 1."""
BAND, BANDS = 9, 247
"""Neighbouring frequencies that are muted, and how many of the lowest ones they may begin at."""


def augment(inputs: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    """Crop and mirror all frames and flow of a sample alike; add noise to its sound and mute a band of that."""
    audio, video = inputs["audio"], inputs["video"]
    views = draw_views(len(video), video.shape[-1], generator)
    noise = torch.rand(audio.shape, generator=generator).to(audio)
    start = torch.randint(BANDS, (len(audio), 1), generator=generator).to(audio.device)
    rows = torch.arange(audio.shape[-2], device=audio.device)
    muted = ((rows >= start) & (rows < start + BAND))[:, None, :, None]
    heard = (audio + NOISE * (2 * noise - 1)).masked_fill(muted, 0)
    moving = {"flow": views.apply_flow(inputs["flow"])} if "flow" in inputs else {}
    return {**inputs, "audio": heard, "video": views.apply(video), **moving}
