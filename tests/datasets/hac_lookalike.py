"""A stand-in for HAC: 30 clips of 3 actions in the archives and lists of its 3 domains, with everything that is odd."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from benchmark.dataset import Checksum, Dataset, DatasetCard, Source
from datasets.hac import HAC
from datasets.hac_flow import HACFlow
from tests.datasets.lookalikes import NOWHERE, Lookalike, single_files, tone, write_zip

CLASSES = ("sleeping", "watching tv", "eating")
DOMAINS = ("human", "animal", "cartoon")
WIDTH, HEIGHT, RATE = 64, 48, 24
FRAMES, SIDE = 8, 56
SHAPES = {"audio": (1, 257, 1004), "video": (3, FRAMES, SIDE, SIDE), "flow": (2, FRAMES, SIDE, SIDE)}
"""Fewer and smaller frames than those of the card: they are prepared as the card says."""
SHORT_CLIP, LONG_CLIP = 10, 30
"""Frames of clips with fewer and with more than the 16 that a window spans."""
MOTION = ((168, 128), (88, 128), (128, 168))
"""Levels of horizontal and vertical flow per class: to the right, to the left, down."""
SHADE = {"human": 0, "animal": 60, "cartoon": 120}
BLUE = 8
"""Red of every frame of a domain; green is the class, and blue rises by 8 with every frame."""
TWICE = "AAAAAAAAAA2_000000_000010"
WITHOUT_VIDEO, WITHOUT_SOUND, SLOW = "eating_1", "watching_1", "eating_2"


def video(pictures: Sequence[NDArray[np.uint8]], shown: str = "rgb24", rate: int = RATE) -> bytes:
    """Return an MP4 of `pictures`, nearly lossless."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "preset": "ultrafast"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=shown)))
        container.mux(stream.encode(None))
    return file.getvalue()


def recording(label: int, seconds: float, rate: int = 16_000, channels: int = 1) -> bytes:
    """Return a WAV of a class's tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        samples = (tone(label, seconds, rate) * 32_767).astype("<i2")
        stream.writeframes(np.repeat(samples, channels).tobytes())
    return file.getvalue()


def names(domain: str, label: int) -> tuple[str, str, str]:
    """Return two clips of a training list and one of a test list, named as in the domain."""
    if domain == "human":
        return (
            f"AAAAAAAAAA{label}_000000_000010",
            f"BBBBBBBBBB{label}_000005_000015",
            f"CCCCCCCCCC{label}_000001_000011",
        )
    word = CLASSES[label].partition(" ")[0]
    return f"{word}_1", f"{word}_2", f"{word}_3"


def write_hac(folder: Path) -> Lookalike:
    """Write 3 classes x 3 domains x (2 + 1) clips, long ones for training, short ones for the test.

    Of human clips one is in both lists. Of animal clips one has no video, one no sound and one 12 frames per second.
    One recording of every domain is at 44.1 kHz in stereo.
    """
    folder.mkdir(parents=True)
    rows: dict[str, list[str]] = {f"HAC_{part}_only_{d}.csv": [] for d in DOMAINS for part in ("train", "test")}
    for domain in DOMAINS:
        members: dict[str, bytes] = {}
        for label in range(len(CLASSES)):
            for place, name in enumerate(names(domain, label)):
                frames = SHORT_CLIP if place == 2 else LONG_CLIP
                rate = 12 if (domain, name) == ("animal", SLOW) else RATE
                rows[f"HAC_{'test' if place == 2 else 'train'}_only_{domain}.csv"].append(f"{name}.mp4,{label}")
                colours = [(SHADE[domain], 40 + 60 * label, BLUE * number) for number in range(frames)]
                pictures = [np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in colours]
                other = (44_100, 2) if label == place == 1 else (16_000, 1)
                members[f"{domain}/videos/{name}.mp4"] = video(pictures, rate=rate)
                members[f"{domain}/audio/{name}.wav"] = recording(label, frames / rate, *other)
                for axis, level in zip("xy", MOTION[label], strict=True):
                    still = np.full((HEIGHT, WIDTH), level, np.uint8)
                    members[f"{domain}/flow/{name}_flow_{axis}.mp4"] = video([still] * (frames - 1), "gray")
        if domain == "animal":
            del members[f"animal/videos/{WITHOUT_VIDEO}.mp4"], members[f"animal/audio/{WITHOUT_SOUND}.wav"]
        write_zip(folder / f"{domain}.zip", {**members, f"__MACOSX/{domain}/._junk.mp4": b"junk"})
    rows["HAC_test_only_human.csv"].append(f"{TWICE}.mp4,2")
    for file, lines in rows.items():
        (folder / file).write_text("".join(f"{line}\n" for line in lines))
    unknown = Source(file="human.zip", urls=(f"{NOWHERE}/human.zip",), checksum=Checksum(""))
    sources = (unknown, *single_files(folder, "animal.zip", "cartoon.zip", *rows))
    ids = [f"{domain}/{name}" for domain in DOMAINS for label in range(3) for name in names(domain, label)]
    cards: dict[type[Dataset], DatasetCard] = {
        kind: replace(kind.card, sources=sources, classes=CLASSES, shapes={m: SHAPES[m] for m in kind.card.modalities})
        for kind in (HAC, HACFlow)
    }
    return Lookalike(folder, tuple(ids), cards)
