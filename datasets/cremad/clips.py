"""What a CREMA-D file name says, which part its clip is in, and how it is decoded."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from benchmark.dataset import Checksum, hash_order
from datasets._clips.frames import SIDE, Frames, segment_frames
from datasets._clips.sound import Sound, read_wave

AUDIO, VIDEO = "AudioWAV", "VideoFlash"
FRAMES = 3
CLEAN_CUTS = (0.7, 0.8)
"""Shares of the actors, in hash order, at which the speaker-disjoint split ends train and val: 63 and 72 of 91."""


def actor(name: str) -> str:
    """Return the actor of a clip: names are `<actor>_<sentence>_<emotion>_<level>`."""
    return name.split("_")[0]


def emotion(name: str) -> str:
    """Return the emotion that the actor of a clip was asked for."""
    return name.split("_")[2]


def read_list(file: Path) -> set[str]:
    """Return the clips in a published list: rows of name and emotion without a header."""
    with file.open(newline="", encoding="utf-8") as stream:
        return {row[0] for row in csv.reader(stream)}


def legacy_parts(names: Sequence[str], *, val: Set[str], test: Set[str]) -> list[str]:
    """Return each clip's part in the published lists; `val` is cut out of the one for training."""
    return ["test" if name in test else "val" if name in val else "train" for name in names]


def clean_parts(names: Sequence[str]) -> list[str]:
    """Return each clip's part when no actor is in two: actors in hash order, cut at `CLEAN_CUTS`."""
    actors = sorted({actor(name) for name in names})
    order = hash_order([f"cremad:actor:{number}" for number in actors])
    first, second = (int(cut * len(actors)) for cut in CLEAN_CUTS)
    parts = {actors[p]: "train" if r < first else "val" if r < second else "test" for r, p in enumerate(order)}
    return [parts[actor(name)] for name in names]


def shared_recordings(files: Mapping[str, Checksum]) -> dict[str, str]:
    """Return the clips whose recording has the same bytes as another clip's, with that clip."""
    owners = defaultdict(list)
    for path, checksum in files.items():
        if path.startswith(f"{AUDIO}/"):
            owners[checksum.sha256].append(PurePosixPath(path).stem)
    return {name: other for same in owners.values() for name in same for other in same if other != name}


@dataclass(frozen=True)
class Decoded:
    """A clip's frames and sound."""

    frames: Frames
    sound: Sound

    @property
    def faults(self) -> list[str]:
        """What was wrong with either, or with their lengths."""
        faults = [f"video {fault}" for fault in self.frames.faults] + [f"audio {fault}" for fault in self.sound.faults]
        video, audio = self.frames.seconds, self.sound.seconds
        if video and audio and not 0.5 <= video / audio <= 2:
            faults.append(f"video of {video:.1f} s beside a recording of {audio:.1f} s")
        return faults


def decode(raw: Path, rate: int, name: str) -> Decoded:
    """Read a clip's three frames and its recording at `rate` Hz (not the video's own sound, which some clips lack)."""
    return Decoded(
        segment_frames(raw / VIDEO / f"{name}.flv", FRAMES),
        read_wave(raw / AUDIO / f"{name}.wav", rate),
    )


def crashed(rate: int, _name: str) -> Decoded:
    """Return black frames and silence, for a clip that took the decoder's process down."""
    black = Frames(np.zeros((3, FRAMES, SIDE, SIDE), np.uint8), 0.0, ("takes the decoder down",))
    return Decoded(black, Sound(np.zeros(0, np.float32), rate, ("not read",)))
