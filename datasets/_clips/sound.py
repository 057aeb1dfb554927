"""The sound of clips: mono waves at one rate, and the three spectrograms that the literature trains on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets._clips.packets import broken, decoded_audio

SPECTROGRAM_RATE, SPECTROGRAM_SAMPLES, SPECTROGRAM_SHAPE = 22_050, 66_150, (1, 257, 188)
FBANK_RATE, FBANK_SHAPE = 16_000, (1, 1024, 128)
FBANK_WINDOW = 400
STANDARD_RATE, STANDARD_SAMPLES, STANDARD_SHAPE = 16_000, 160_000, (1, 257, 1004)
SILENCE = 1e-3
"""A peak below this, -60 dB of full scale, is called silent."""


@dataclass(frozen=True)
class Sound:
    """Mono samples (n,) in about -1 .. 1 at `rate` Hz, and what was wrong with them."""

    samples: NDArray[np.float32]
    rate: int
    faults: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    def excerpt(self, start: float, stop: float) -> Sound:
        """Return what is heard between two times in seconds, and whether anything is."""
        if not len(self.samples):
            return self
        samples = self.samples[round(start * self.rate) : round(stop * self.rate)]
        return Sound(samples, self.rate, _audible(samples))


def read_wave(file: Path | bytes, rate: int) -> Sound:
    """Return a wav or flac file, channels averaged, resampled to `rate`; `file` may be the bytes of one.

    A fault is named and never raises.
    """
    import soundfile

    try:
        stream = BytesIO(file) if isinstance(file, bytes) else file
        samples, found = soundfile.read(stream, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        return _unreadable(rate, error)
    return _sound(samples.mean(axis=1), found, rate, [])


def read_track(file: Path, rate: int) -> Sound:
    """Return the first sound track of a video file, as `read_wave` does."""
    import av

    blocks: list[NDArray[np.float32]] = []
    errors: list[str] = []
    found = rate
    try:
        with av.open(str(file)) as container:
            if not container.streams.audio:
                return Sound(np.zeros(0, np.float32), rate, ("no sound track",))
            mono = av.AudioResampler("fltp", "mono")
            for frame in decoded_audio(container, errors):
                found = frame.sample_rate
                blocks += [block.to_ndarray()[0] for block in mono.resample(frame)]
    except (av.FFmpegError, OSError) as error:
        return _unreadable(rate, error)
    return _sound(np.concatenate(blocks or [np.zeros(0, np.float32)]), found, rate, [*broken(errors)])


def _unreadable(rate: int, error: Exception) -> Sound:
    return Sound(np.zeros(0, np.float32), rate, (f"unreadable ({type(error).__name__})",))


def _sound(samples: NDArray[np.float32], found: int, rate: int, faults: list[str]) -> Sound:
    """Resample with a polyphase filter and say whether anything is to be heard."""
    from scipy.signal import resample_poly

    if not np.isfinite(samples).all():
        faults.append(f"{np.count_nonzero(~np.isfinite(samples))} samples are not finite")
        samples = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
    faults += _audible(samples)
    if found != rate and len(samples):
        up, down = rate // gcd(found, rate), found // gcd(found, rate)
        samples = resample_poly(samples, up, down, window=_low_pass(max(up, down)))
    return Sound(np.ascontiguousarray(samples, np.float32), rate, tuple(faults))


@lru_cache
def _low_pass(factor: int) -> NDArray[np.float32]:
    """Return the filter that `resample_poly` would design anew for every recording: that takes longer than its use."""
    from scipy.signal import firwin

    found: NDArray[np.float32] = firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0)).astype(np.float32)
    return found


def _audible(samples: NDArray[np.float32]) -> tuple[str, ...]:
    """Return as a fault that nothing is to be heard, or none."""
    if not len(samples):
        return ("no samples",)
    return ("silent",) if np.abs(samples).max() < SILENCE else ()


def log_spectrogram(sound: Sound) -> NDArray[np.float16]:
    """Return log(|STFT| + 1e-7) of the first 3 s at 22,050 Hz, (1, 257, 188); a shorter sound is repeated.

    512 samples per frame, every 353, periodic Hann window, frames centred and reflected at the ends: the front end of
    OGM-GE (Peng et al., CVPR 2022) and of what follows it. Without samples it is that of silence.
    """
    import torch
    from torchaudio.transforms import Spectrogram

    _refuse_rate(sound, SPECTROGRAM_RATE)
    tiled = np.resize(sound.samples, SPECTROGRAM_SAMPLES).clip(-1, 1)
    magnitude = Spectrogram(n_fft=512, hop_length=353, power=1.0)(torch.from_numpy(tiled))
    return torch.log(magnitude + 1e-7).to(torch.float16).numpy()[None]


def filter_bank(sound: Sound) -> NDArray[np.float16]:
    """Return Kaldi's log mel energies at 16,000 Hz, (1, 1024, 128): 128 bands, a frame every 10 ms.

    25 ms Hann window, no dither, mean removed; cut, or padded with zeros, to 1024 frames: the front end of the Audio
    Spectrogram Transformer (Gong et al., Interspeech 2021) before its normalisation, which is the suite's here.
    """
    import torch
    from torchaudio.compliance.kaldi import fbank

    _refuse_rate(sound, FBANK_RATE)
    out = np.zeros(FBANK_SHAPE, np.float16)
    if len(sound.samples) >= FBANK_WINDOW:
        wave = torch.from_numpy(sound.samples - sound.samples.mean())[None]
        energies = fbank(
            wave,
            sample_frequency=FBANK_RATE,
            num_mel_bins=FBANK_SHAPE[2],
            window_type="hanning",
            htk_compat=True,
            use_energy=False,
            dither=0.0,
        )[: FBANK_SHAPE[1]]
        out[0, : len(energies)] = energies.numpy()
    return out


def standard_spectrogram(sound: Sound) -> NDArray[np.float16]:
    """Return log(power density + 1e-7) of the first 10 s at 16,000 Hz, of mean 0 and deviation 1, (1, 257, 1004).

    A shorter sound is repeated. 512 samples per frame, every 159, Tukey window, mean of every frame removed: the front
    end of the VGGSound classifier (Chen et al., ICASSP 2020) and of SimMMDG. Silence is about zero.
    """
    from scipy.signal import spectrogram

    _refuse_rate(sound, STANDARD_RATE)
    tiled = np.resize(sound.samples, STANDARD_SAMPLES).clip(-1, 1)
    _, _, power = spectrogram(tiled, STANDARD_RATE, nperseg=512, noverlap=353)
    level = np.log(power.astype(np.float64) + 1e-7)
    standard: NDArray[np.float16] = ((level - level.mean()) / (level.std() + 1e-9)).astype(np.float16)
    return standard[None]


def _refuse_rate(sound: Sound, rate: int) -> None:
    if sound.rate != rate:
        raise ValueError(f"The sound must be at {rate} Hz. Found {sound.rate} Hz. Read it at that rate.")
