"""Clips with real codecs, made in seconds: a class is a colour that moves and a pitch."""

from __future__ import annotations

import hashlib
import wave
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from benchmark.dataset import Checksum

WIDTH, HEIGHT, FRAME_RATE = 160, 120, 30
TRACK_RATE = 22_050
COLOURS = [(220, 40, 40), (40, 200, 40), (40, 40, 220), (220, 220, 40), (220, 40, 220), (40, 220, 220)]


def pitch(label: int) -> float:
    """Return the frequency (Hz) of a class's tone."""
    return 200.0 + 80 * label


def tone(label: int, seconds: float, rate: int) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * pitch(label) * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def picture(label: int, number: int) -> NDArray[np.uint8]:
    """Return frame `number` of a class: a square in its colour, 4 pixels further right in every frame, on grey."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    left = 4 * number % (WIDTH - 60)
    image[30:90, left : left + 60] = COLOURS[label % len(COLOURS)]
    return image


def write_wave(file: Path, samples: NDArray[np.float32], rate: int = 16_000) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes((samples * 32_767).astype("<i2").tobytes())


def write_video(
    file: Path,
    label: int,
    frames: int,
    *,
    codec: str = "flv1",
    sound: str | None = "libmp3lame",
    rate: int = TRACK_RATE,
) -> None:
    """Write `frames` frames of a class at 30 fps and, with a `sound` codec, as much of its tone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        video = container.add_stream(codec, rate=FRAME_RATE)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.bit_rate = 1_000_000
        track = container.add_stream(sound, rate=rate, layout="mono") if sound else None
        for number in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(label, number), format="rgb24")))
        container.mux(video.encode(None))
        if isinstance(track, av.AudioStream):
            samples = tone(label, frames / FRAME_RATE, rate)
            block = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            block.sample_rate = rate
            container.mux(track.encode(block))
            container.mux(track.encode(None))


def sums(file: Path) -> Checksum:
    return Checksum(hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size)
