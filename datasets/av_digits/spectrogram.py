"""One second of 8 kHz speech as a log spectrogram of 129 frequencies and 64 frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import DataError

RATE, SAMPLES, FRAMES = 8000, 8000, 64


def read_waves(files: Sequence[Path]) -> NDArray[np.float32]:
    """Return recordings (n, 8000) in -1 .. 1, cut or zero-padded; raises DataError for another format."""
    import soundfile

    waves = np.zeros((len(files), SAMPLES), np.float32)
    for wave, file in zip(waves, files, strict=True):
        samples, rate = soundfile.read(file, frames=SAMPLES, dtype="int16")
        if rate != RATE or samples.ndim != 1:
            raise DataError(f"{file} has {rate} Hz and shape {samples.shape}, not {RATE} Hz, mono. Fetch it again.")
        wave[: len(samples)] = samples / np.float32(32768)
    return waves


def log_spectrograms(waves: NDArray[np.float32], block: int = 250) -> NDArray[np.float16]:
    """Return log(|X| + 1e-4) of Hann frames of 256 samples every 125: (n, 8000) to (n, 1, 129, 64)."""
    import torch
    from torchaudio.transforms import Spectrogram

    transform = Spectrogram(n_fft=256, hop_length=125, pad=128, power=1.0, center=False)
    out = np.empty((len(waves), 1, 129, FRAMES), np.float16)
    for start in range(0, len(waves), block):
        magnitude = transform(torch.from_numpy(waves[start : start + block]))[..., :FRAMES]
        out[start : start + block, 0] = torch.log(magnitude + 1e-4).numpy()
    return out
