"""Optical flow computed from a video, for clips beside which none is published; stored as published flow is."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import DataError
from datasets._clips.frames import SIDE, Frames, squashed, whole_frames

BOUND = 20.0
"""Motion in pixels per frame at which the levels end, to either side: that of the flow published for UCF101."""


@cache
def estimator() -> Any:
    """Return OpenCV's TV-L1 with its own parameters, on one thread; raises DataError where it is not installed."""
    try:
        import cv2  # type: ignore[import-not-found, unused-ignore]  # an extra, with types of its own

        # A pool of processes has one per core already.
        cv2.setNumThreads(1)
        return cv2.optflow.DualTVL1OpticalFlow.create()
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"Optical flow is computed by OpenCV with its contrib modules, which are not here ({error}). Run "
            "`pip install 'equipoise[flow]'`; other packages of OpenCV have to be uninstalled first."
        ) from None


def motion(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how far everything in a gray image (H, W) moves until the next: (2, H, W), in pixels, right and down.

    TV-L1 (Zach, Pock and Bischof, DAGM 2007; as by Sanchez Perez et al., IPOL 2013).
    """
    flow = estimator().calc(before, after, None)
    return np.ascontiguousarray(flow.transpose(2, 0, 1), np.float32)


def levels(flow: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return motion as levels 0 to 255 for -20 to 20 pixels, as TSN does (Wang et al., ECCV 2016): none is 128."""
    # Zero lies at 127.5, which is rounded to the even level.
    return np.rint((flow.clip(-BOUND, BOUND) + BOUND) * (255 / (2 * BOUND))).astype(np.uint8)


def pair_numbers(count: int, pairs: int) -> list[int]:
    """Return the numbers of two successive frames of `count` in the middle of each of `pairs` equal segments."""
    firsts = [int((number + 0.5) * max(count - 1, 0) / pairs) for number in range(pairs)]
    return [number for first in firsts for number in (first, first + 1)]


def segment_motion(file: Path | bytes, count: int, side: int = SIDE) -> Frames:
    """Return the motion in the middle of `count` equal segments of a video: levels (2, count, side, side), u before v.

    It is measured in pixels of the video. Where no frame can be decoded, nothing moves; `faults` says what was wrong.
    """
    found = whole_frames(file, 2 * count, partial(pair_numbers, pairs=count))
    pairs = zip(found.images[0, ::2], found.images[0, 1::2], strict=True)
    moving = [squashed(levels(motion(*pair)), side) for pair in pairs]
    return Frames(np.stack(moving, axis=1), found.seconds, found.faults, found.count)
