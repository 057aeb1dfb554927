"""What the published list of Kinetics-Sounds says, which file a clip is, how it is decoded and where it is used."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.dataset import PARTS, stratified_parts
from datasets._clips.frames import SIDE, Frames, segment_frames
from datasets._clips.sound import FBANK_RATE, Sound, read_track

FRAMES, SECONDS = 3, 10.0
SUBSETS = {"training": "train", "validation": "val", "testing": "test"}
CUTS = (0.8, 0.9)
"""Shares of a class, in hash order, at which the split `rgm-like` ends train and val."""
ID = 11
"""Characters of a YouTube id: letters, digits, `-` and `_`."""
_NAME = re.compile(rf"([\w-]{{{ID}}})_(\d+)(?:_\d+)?", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """A clip of the published list: its part there and its class."""

    part: str
    label: str


def clip_name(text: str) -> str | None:
    """Return `<YouTube id>_<start, six digits>` for any spelling of a clip's name, None for another text.

    Lists and archives write `id_start` or `id_start_end`, padded or not.
    """
    match = _NAME.fullmatch(text)
    return f"{match[1]}_{int(match[2]):06d}" if match else None


def read_list(file: Path) -> dict[str, Listed]:
    """Return the clips of the published list by `clip_name`, in the order of their names."""
    rows = json.loads(file.read_text(encoding="utf-8"))["database"]
    listed = {clip_name(text) or text: Listed(SUBSETS[row["subset"]], row["label"]) for text, row in rows.items()}
    return dict(sorted(listed.items()))


def rgm_like_parts(names: Sequence[str], classes: Sequence[int]) -> list[str]:
    """Return each clip's part when every class is cut 8:1:1 in the hash order of its YouTube ids."""
    return stratified_parts([name[:ID] for name in names], classes, CUTS)


def locate(files: Iterable[Path], names: Collection[str]) -> dict[str, tuple[Path, ...]]:
    """Return the files of the clips in `names` that have any; a clip may be there in several copies."""
    found = defaultdict(list)
    for file in files:
        name = clip_name(file.stem)
        if name is not None and name in names:
            found[name].append(file)
    return {name: tuple(copies) for name, copies in found.items()}


def fingerprint(name: str, copies: Sequence[Path]) -> str:
    """Return what tells a clip with these files from one whose files were exchanged meanwhile."""
    states = ((file, file.stat()) for file in copies)
    return "\0".join([name, *(f"{file}\0{state.st_size}\0{state.st_mtime_ns}" for file, state in states)])


@dataclass(frozen=True)
class Decoded:
    """A clip's frames and sound."""

    frames: Frames
    sound: Sound

    @property
    def seen(self) -> bool:
        """True when there is a frame that is not black."""
        return bool(self.frames.images.any())

    @property
    def heard(self) -> bool:
        """True when there is a sound track that can be decoded, silent or not."""
        return len(self.sound.samples) > 0

    @property
    def faults(self) -> list[str]:
        """What is wrong with either, and what follows from it."""
        faults = [f"video {fault}" for fault in self.frames.faults] + [f"audio {fault}" for fault in self.sound.faults]
        if not self.seen and not self.frames.faults:
            faults.append("video black")
        if not self.seen or not self.heard:
            faults.append("not trained on" if self.seen or self.heard else "not used")
        return faults

    def padded(self) -> Sound:
        """Return the sound; without a track, silence as long as the video, whose time stamps may be absurd."""
        silence = np.zeros(round(min(self.frames.seconds, SECONDS) * FBANK_RATE), np.float32)
        return self.sound if self.heard else Sound(silence, FBANK_RATE)


def decode(copies: Sequence[Path]) -> Decoded:
    """Read a clip's three frames and its sound track from its first whole copy, else that with fewest faults."""
    found: list[Decoded] = []
    for file in copies:
        found.append(Decoded(segment_frames(file, FRAMES), read_track(file, FBANK_RATE)))
        if not found[-1].faults:
            break
    return min(found, key=lambda clip: len(clip.faults))


def crashed(_copies: Sequence[Path]) -> Decoded:
    """Return black frames and no sound, for a clip that took the decoder's process down."""
    black = Frames(np.zeros((3, FRAMES, SIDE, SIDE), np.uint8), 0.0, ("takes the decoder down",))
    return Decoded(black, Sound(np.zeros(0, np.float32), FBANK_RATE, ("not read",)))


def used_part(part: str, *, seen: bool, heard: bool) -> str:
    """Return where a clip is used: none without frames and sound, and train only with both.

    Validation and test keep a clip that lacks one, so that accuracy stays a share of the same number of clips.
    """
    return part if (seen and heard) or (part != "train" and (seen or heard)) else ""


def census(
    parts: Mapping[str, str], used: Mapping[str, str], seen: Collection[str], heard: Collection[str]
) -> dict[str, dict[str, int]]:
    """Return per part how many clips are listed, found (the keys of `used`), with frames, with sound, and used."""
    counts = {}
    for part in PARTS:
        listed = {name for name, own in parts.items() if own == part}
        counts[part] = {
            "listed": len(listed),
            "found": len(listed & used.keys()),
            "with frames": len(listed.intersection(seen)),
            "with sound": len(listed.intersection(heard)),
            "used": sum(own == part for own in used.values()),
        }
    return counts
