"""Which recording meets which image, in which part: no recording and no image is in two parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from benchmark.dataset import PARTS, hash_order

# Accents, so that a later protocol can train on two of them and test on the third.
DOMAINS = {"usa": ("jackson", "theo"), "german": ("lucas", "yweweler"), "greek_french": ("george", "nicolas")}


@dataclass(frozen=True)
class Recording:
    """One recording of the Free Spoken Digit Dataset: `recordings/<digit>_<speaker>_<index>.wav`."""

    digit: int
    speaker: str
    index: int

    @classmethod
    def from_path(cls, path: str) -> Recording:
        """Read digit, speaker and index from a file name."""
        digit, speaker, index = PurePosixPath(path).stem.split("_")
        return cls(int(digit), speaker, int(index))

    @property
    def name(self) -> str:
        """Name without folder and suffix."""
        return f"{self.digit}_{self.speaker}_{self.index}"

    @property
    def part(self) -> str:
        """Part in FSDD's own rule: indices 0-4 test; of its training recordings 5-9 validate."""
        return "test" if self.index < 5 else "val" if self.index < 10 else "train"

    @property
    def domain(self) -> int:
        """Position of the speaker's group in `DOMAINS`."""
        return next(number for number, speakers in enumerate(DOMAINS.values()) if self.speaker in speakers)


def paired_images(recordings: Sequence[Recording], labels: Sequence[int], parts: Sequence[str]) -> list[int]:
    """Return the image number for every recording.

    Per class and part the k-th recording in hash order meets the k-th image in hash order, modulo their
    number; `labels` and `parts` are the images'.
    """
    images = hash_order([f"avd0:img:{number}" for number in range(len(labels))])
    spoken = hash_order([f"avd0:rec:{r.speaker}:{r.digit}:{r.index}" for r in recordings])
    paired = [0] * len(recordings)
    groups: Mapping[tuple[str, int], list[int]] = {(part, digit): [] for part in PARTS for digit in range(10)}
    for image in images:
        groups[parts[image], labels[image]].append(image)
    met = dict.fromkeys(groups, 0)
    for position in spoken:
        group = (recordings[position].part, recordings[position].digit)
        paired[position] = groups[group][met[group] % len(groups[group])]
        met[group] += 1
    return paired
