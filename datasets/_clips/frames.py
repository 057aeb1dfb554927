"""Frames of a video file by their time stamps, resized, whatever the file's faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets._clips.packets import broken, decoded_video, packets

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

SIDE = 224


@dataclass(frozen=True)
class Pixels:
    """What frames are converted to: FFmpeg's name of it, its channels, and the level of a frame that is not there."""

    format: str
    channels: int
    blank: int = 0

    def blanks(self, count: int, side: int = SIDE) -> NDArray[np.uint8]:
        """Return `count` frames (channels, count, side, side) that stand for those of a broken file."""
        return np.full((self.channels, count, side, side), self.blank, np.uint8)


RGB = Pixels("rgb24", 3)


@dataclass(frozen=True)
class Frames:
    """Frames (channels, T, side, side) as uint8, the video's length in seconds and what was wrong with it."""

    images: NDArray[np.uint8]
    seconds: float
    faults: tuple[str, ...] = ()


def segment_centres(seconds: float, count: int) -> list[float]:
    """Return the middle of each of `count` equal segments of a video, in seconds from its start."""
    return [(number + 0.5) * seconds / count for number in range(count)]


def segment_frames(file: Path | bytes, count: int, side: int = SIDE, pixels: Pixels = RGB) -> Frames:
    """Return the frames shown in the middle of `count` equal segments of a video; see `frames_at`."""
    return _read(file, count, lambda seconds: segment_centres(seconds, count), side, pixels)


def frames_at(file: Path | bytes, times: Sequence[float], side: int = SIDE, pixels: Pixels = RGB) -> Frames:
    """Return the frames shown at `times` (seconds from the start, ascending); `file` may be the bytes of one.

    Frames are RGB unless `pixels` says otherwise. Shown is the last decodable frame up to a time; before the first,
    that one. Without any, all are blank. A fault of the file never raises: it is named in `faults`.
    """
    return _read(file, len(times), lambda _: times, side, pixels)


def _read(
    file: Path | bytes, count: int, choose: Callable[[float], Sequence[float]], side: int, pixels: Pixels
) -> Frames:
    import av

    blanks = pixels.blanks(count, side)
    try:
        with av.open(_openable(file), "r") as container:
            if not container.streams.video:
                return Frames(blanks, 0.0, ("no video stream",))
            start, seconds, stamps = _extent(container)
        with av.open(_openable(file), "r") as container:
            shown, faults = _shown(container, [start + time for time in choose(seconds)])
    except (av.FFmpegError, OSError) as error:
        return Frames(blanks, 0.0, (f"unreadable ({type(error).__name__})",))
    if not shown:
        return Frames(blanks, seconds, (*faults, "no frame can be decoded"))
    if stamps < count:
        faults = (*faults, f"{stamps} frame{'s' if stamps > 1 else ''} instead of at least {count}")
    return Frames(np.stack([_resized(frame, side, pixels) for frame in shown], axis=1), seconds, faults)


def _openable(file: Path | bytes) -> BytesIO | str:
    return BytesIO(file) if isinstance(file, bytes) else str(file)


def _extent(container: InputContainer) -> tuple[float, float, int]:
    """Return first time stamp, length in seconds and number of stamps, without decoding.

    What the container says of itself is not asked: FLV often has neither length nor frame rate.
    """
    stream = container.streams.video[0]
    found = (_stamp(packet.pts, packet.dts) for packet in packets(container, stream, []))
    stamps = sorted(stamp for stamp in found if stamp is not None)
    if not stamps:
        return 0.0, 0.0, 0
    # The last frame is taken to be shown for as long as the others on average.
    ticks = (stamps[-1] - stamps[0]) * len(stamps) / (len(stamps) - 1) if len(stamps) > 1 else 0
    base = stream.time_base or 0
    return float(stamps[0] * base), float(ticks * base), len(stamps)


def _shown(container: InputContainer, times: Sequence[float]) -> tuple[list[VideoFrame], tuple[str, ...]]:
    """Decode up to the last of `times`; returns the frame shown at each, none at all if none can be decoded."""
    base = float(container.streams.video[0].time_base or 0)
    shown: list[VideoFrame] = []
    last: VideoFrame | None = None
    errors: list[str] = []
    for frame in decoded_video(container, errors):
        stamp = _stamp(frame.pts, frame.dts)
        now = stamp * base if stamp is not None else -np.inf
        while len(shown) < len(times) and times[len(shown)] < now:
            shown.append(last or frame)
        last = frame
        if len(shown) == len(times):
            break
    return (shown + [last] * (len(times) - len(shown)) if last else []), broken(errors)


def _stamp(presentation: int | None, decoding: int | None) -> int | None:
    return decoding if presentation is None else presentation


def _resized(frame: VideoFrame, side: int, pixels: Pixels) -> NDArray[np.uint8]:
    """Return a frame as (channels, side, side), bilinear over the whole area that a pixel covers."""
    from av.video.reformatter import Interpolation

    # Bit-exact arithmetic: the same frames, and so the same digest, on every processor.
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    small = frame.reformat(side, side, pixels.format, interpolation=exact, threads=1)
    return np.ascontiguousarray(small.to_ndarray().reshape(side, side, pixels.channels).transpose(2, 0, 1))
