"""Frames that are stored one by one, as JPEG files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets._clips.frames import RGB, SIDE, Frames, Pixels, centre

if TYPE_CHECKING:
    from av import VideoFrame


def still_frames(files: Sequence[bytes | None], side: int = SIDE, pixels: Pixels = RGB) -> Frames:
    """Return the centres of frames given as the bytes of JPEG files, None for one that is not there.

    In place of one that is missing or damaged stands the last good one before it; before the first, that one. Without
    any, all are blank. `faults` says how many there were; a length in seconds is not known.
    """
    shown = [None if file is None else _decoded(file) for file in files]
    missing, bad = files.count(None), shown.count(None) - files.count(None)
    counts = ((missing, "missing"), (bad, "damaged"))
    faults = tuple(f"{count} of {len(files)} frames {what}" for count, what in counts if count)
    good = [number for number, frame in enumerate(shown) if frame]
    if not good:
        return Frames(pixels.blanks(len(files), side), 0.0, (*faults, "no frame can be decoded"))
    images = {number: centre(frame, side, pixels) for number, frame in enumerate(shown) if frame}
    stand_ins = [max((own for own in good if own <= number), default=good[0]) for number in range(len(files))]
    return Frames(np.stack([images[number] for number in stand_ins], axis=1), 0.0, faults, len(good))


def _decoded(file: bytes) -> VideoFrame | None:
    import av

    codec = av.CodecContext.create("mjpeg", "r")
    assert isinstance(codec, av.VideoCodecContext)
    try:
        frames = codec.decode(av.Packet(file))
    except av.FFmpegError:
        return None
    return frames[0] if frames and not frames[0].is_corrupt else None
