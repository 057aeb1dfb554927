"""Many clips as CREMA-D's: `python -m tests.datasets.many FOLDER COUNT` writes them at the published size."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.datasets.lookalikes import EMOTIONS, Lookalike, listed_cremad, picture, tone, write_video, write_wave

DISTINCT = 24
GRAIN = np.random.default_rng(0).integers(-12, 13, (360, 480, 3))


def grainy(label: int, number: int) -> NDArray[np.uint8]:
    """Return a picture of the published size, as hard to compress as a recording: its files are as large as theirs."""
    image = picture(label, number).repeat(3, axis=0).repeat(3, axis=1)
    return (image + np.roll(GRAIN, 7 * number, axis=(0, 1))).clip(0, 255).astype(np.uint8)


def write_many(folder: Path, count: int, *, published_size: bool) -> Lookalike:
    """Write `count` clips, of which 24 differ; those that are as large as published ones last 2 to 3 s, others half."""
    names = [f"{1001 + n // 6}_DFA_{EMOTIONS[n % 6]}_XX" for n in range(count)]
    for number, name in enumerate(names):
        for path in (f"VideoFlash/{name}.flv", f"AudioWAV/{name}.wav"):
            first = folder / path.replace(name, names[number % DISTINCT])
            if number >= DISTINCT:
                os.link(first, folder / path)
        if number < DISTINCT:
            seconds = (2 + number / DISTINCT) / (1 if published_size else 2)
            draw = grainy if published_size else picture
            write_video(folder / f"VideoFlash/{name}.flv", number % 6, round(30 * seconds), draw=draw)
            write_wave(folder / f"AudioWAV/{name}.wav", tone(number % 6, round(30 * seconds) / 30, 16_000))
    return listed_cremad(folder, names)


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), int(sys.argv[2]), published_size=True)
