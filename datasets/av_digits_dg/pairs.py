"""Which recording meets which image, in which domain and part: no recording and no image is in two of either."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.dataset import hash_order
from datasets._digit_domains import image_keys
from datasets.av_digits.pairs import Recording


def recording_part(recording: Recording) -> str:
    """Return the part: of every speaker and digit the indices 0-9 test, and of the others 10-14 validate."""
    return "test" if recording.index < 10 else "val" if recording.index < 15 else "train"


def image_parts(labels: Sequence[int], domains: Sequence[int]) -> list[str]:
    """Return train, val or test of every image.

    Of a class's n images in a domain the last test, but for round(0.8 n) in hash order; of those the last eighth,
    rounded down, validates, as 5 of 40 recordings do.
    """
    strata: dict[tuple[int, int], list[int]] = {}
    for image in hash_order(image_keys(len(labels))):
        strata.setdefault((labels[image], domains[image]), []).append(image)
    parts = [""] * len(labels)
    for members in strata.values():
        # In integers, so that no machine rounds otherwise; four fifths of a whole number are never halfway.
        seen = (4 * len(members) + 2) // 5
        train = seen - seen // 8
        for rank, image in enumerate(members):
            parts[image] = "train" if rank < train else "val" if rank < seen else "test"
    return parts


def paired_images(
    recordings: Sequence[Recording], labels: Sequence[int], domains: Sequence[int], parts: Sequence[str]
) -> list[int]:
    """Return the image number for every recording.

    The k-th recording in hash order of a digit, domain and part meets the k-th image of the same three, modulo their
    number; `labels`, `domains` and `parts` are the images'.
    """
    shown: dict[tuple[int, int, str], list[int]] = {}
    for image in hash_order(image_keys(len(labels))):
        shown.setdefault((labels[image], domains[image], parts[image]), []).append(image)
    paired = [0] * len(recordings)
    met = dict.fromkeys(shown, 0)
    for position in hash_order([f"avd0:rec:{r.speaker}:{r.digit}:{r.index}" for r in recordings]):
        recording = recordings[position]
        group = (recording.digit, recording.domain, recording_part(recording))
        paired[position] = shown[group][met[group] % len(shown[group])]
        met[group] += 1
    return paired
