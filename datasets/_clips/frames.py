"""Frames of a video file by their time stamps, resized, whatever the file's faults."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets._clips.packets import broken, decodable, decoded, packets

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

SIDE = 224
SHORT = 8 / 7
"""Short side that frames are resized to before their centre is cut out, in sides of that: 256 for 224 pixels."""
STILL = 128
"""The level of no motion where optical flow is stored as images: its range is symmetric about 0."""

WORTH = 8
"""Packets from which on it is quicker to skip to a key frame than to decode up to it."""


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
# Flow is read through gray, and not as one of the colours, whose conversion is two levels low.
GRAY = Pixels("gray", 1, blank=STILL)


@dataclass(frozen=True)
class Frames:
    """Frames (channels, T, side, side) as uint8, the video's length in seconds and what was wrong with it.

    `count` says how many frames the video has.
    """

    images: NDArray[np.uint8]
    seconds: float
    faults: tuple[str, ...] = ()
    count: int = 0

    @property
    def rate(self) -> float:
        """Frames per second, 0 where there is none."""
        return self.count / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Extent:
    """The time stamps of a video's frames, ascending, and its length, all in seconds."""

    stamps: list[float]
    seconds: float


def segment_centres(seconds: float, count: int) -> list[float]:
    """Return the middle of each of `count` equal segments of a video, in seconds from its start."""
    return [(number + 0.5) * seconds / count for number in range(count)]


def segment_frames(file: Path | bytes, count: int, side: int = SIDE, pixels: Pixels = RGB) -> Frames:
    """Return the frames shown in the middle of `count` equal segments of a video; see `frames_at`."""

    def middles(extent: _Extent) -> list[float]:
        return [_start(extent) + centre for centre in segment_centres(extent.seconds, count)]

    return _read(file, middles, pixels.blanks(count, side), partial(_squashed, side=side, pixels=pixels))


def frames_at(file: Path | bytes, times: Sequence[float], side: int = SIDE, pixels: Pixels = RGB) -> Frames:
    """Return the frames shown at `times` (seconds from the start, ascending); `file` may be the bytes of one.

    Frames are RGB unless `pixels` says otherwise. Shown is the last decodable frame up to a time; before the first,
    that one. Without any, all are blank. A fault of the file never raises: it is named in `faults`.
    """

    def shifted(extent: _Extent) -> list[float]:
        return [_start(extent) + time for time in times]

    return _read(file, shifted, pixels.blanks(len(times), side), partial(_squashed, side=side, pixels=pixels))


def numbered_frames(
    file: Path | bytes, count: int, choose: Callable[[int], Sequence[int]], side: int = SIDE, pixels: Pixels = RGB
) -> Frames:
    """Return the centres of `count` frames of a video, in any order; `choose` picks their numbers from 0.

    It is called with the number of frames in the video, and a number beyond them is the last one's. Faults are treated
    as in `frames_at`; the centre is that of `centre`.
    """
    return _numbered(file, choose, pixels.blanks(count, side), partial(centre, side=side, pixels=pixels))


def whole_frames(file: Path | bytes, count: int, choose: Callable[[int], Sequence[int]]) -> Frames:
    """Return `count` frames (1, count, height, width) of a video, gray and at its own size, as `numbered_frames` does.

    Blank ones are square.
    """
    return _numbered(file, choose, GRAY.blanks(count), _whole)


def squashed(images: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """Return gray images (n, height, width) as `segment_frames` would: (n, side, side), their levels as they are."""
    import av

    frames = (av.VideoFrame.from_ndarray(image, format=GRAY.format) for image in images)
    return np.concatenate([_squashed(frame, side, GRAY) for frame in frames])


def _numbered(
    file: Path | bytes,
    choose: Callable[[int], Sequence[int]],
    blanks: NDArray[np.uint8],
    fit: Callable[[VideoFrame], NDArray[np.uint8]],
) -> Frames:
    order: list[int] = []

    def middles(extent: _Extent) -> list[float]:
        """Return a time at which each chosen frame is shown, in ascending order."""
        stamps = extent.stamps or [0.0]
        numbers = np.minimum(choose(len(extent.stamps)), len(stamps) - 1)
        order[:] = np.argsort(numbers, kind="stable").tolist()
        ends = [*stamps[1:], np.inf]
        return [(stamps[n] + min(ends[n], stamps[n] + 1)) / 2 for n in numbers[order].tolist()]

    found = _read(file, middles, blanks, fit)
    images = found.images.copy()
    if order:
        images[:, order] = found.images
    return Frames(images, found.seconds, found.faults, found.count)


def _start(extent: _Extent) -> float:
    return extent.stamps[0] if extent.stamps else 0.0


def _read(
    file: Path | bytes,
    choose: Callable[[_Extent], Sequence[float]],
    blanks: NDArray[np.uint8],
    fit: Callable[[VideoFrame], NDArray[np.uint8]],
) -> Frames:
    """Return the frames shown at the time stamps that `choose` gives, each made to fit, or `blanks`."""
    import av

    try:
        with av.open(_openable(file), "r") as container:
            if not container.streams.video:
                return Frames(blanks, 0.0, ("no video stream",))
            end: list[str] = []
            video = _Video(container.streams.video[0], list(packets(container, container.streams.video[0], end)), end)
            extent = video.extent()
            shown, faults = video.shown(choose(extent))
    except (av.FFmpegError, OSError) as error:
        return Frames(blanks, 0.0, (f"unreadable ({type(error).__name__})",))
    stamps = len(extent.stamps)
    if not shown:
        return Frames(blanks, extent.seconds, (*faults, "no frame can be decoded"), stamps)
    if stamps < blanks.shape[1]:
        faults = (*faults, f"{stamps} frame{'s' if stamps > 1 else ''} instead of at least {blanks.shape[1]}")
    return Frames(np.stack([fit(frame) for frame in shown], axis=1), extent.seconds, faults, stamps)


def _openable(file: Path | bytes) -> BytesIO | str:
    return BytesIO(file) if isinstance(file, bytes) else str(file)


@dataclass(frozen=True)
class _Video:
    """A stream, all its packets as they are stored, and what kept the file from being read any further."""

    stream: VideoStream
    packets: Sequence[Packet[VideoStream]]
    end: Sequence[str]

    def extent(self) -> _Extent:
        """Return time stamps and length, without decoding.

        What the container says of itself is not asked: FLV often has neither length nor frame rate.
        """
        found = (_stamp(packet.pts, packet.dts) for packet in self.packets)
        stamps = sorted(stamp for stamp in found if stamp is not None)
        # The last frame is taken to be shown for as long as the others on average.
        ticks = (stamps[-1] - stamps[0]) * len(stamps) / (len(stamps) - 1) if len(stamps) > 1 else 0
        base = self.stream.time_base or 0
        return _Extent([float(stamp * base) for stamp in stamps], float(ticks * base))

    def shown(self, times: Sequence[float]) -> tuple[list[VideoFrame], tuple[str, ...]]:
        """Return the frame shown at each of `times`, none at all if none can be decoded, and what is damaged.

        Decoded is from the key frame before a time to the frame after it; where anything of that is damaged, all up to
        the last of `times`, for which another frame may then stand.
        """
        errors: list[str] = []
        if not decodable(self.stream, errors):
            return [], broken(errors)
        frames: list[VideoFrame] = []
        for start, own in self._runs(times):
            found = self._shown_from(start, own, errors)
            if errors or not found or (start and self._time(found[0]) > own[0]):
                errors.clear()
                frames = self._shown_from(0, times, errors)
                break
            frames += found
        return frames, broken(errors)

    def _runs(self, times: Sequence[float]) -> list[tuple[int, list[float]]]:
        """Return `times` in groups, each with the number of the packet, a key frame, that it is decoded from."""
        base = float(self.stream.time_base or 0)
        stamps = [_stamp(packet.pts, packet.dts) for packet in self.packets]
        order = sorted((stamp * base, number) for number, stamp in enumerate(stamps) if stamp is not None)
        runs: list[tuple[int, list[float]]] = []
        key, keys = 0, {}
        for stamp, number in order:
            key = number if self.packets[number].is_keyframe else key
            keys[stamp] = key
        reached = 0
        for time in times:
            place = max(0, bisect_right(order, (time, len(stamps))) - 1)
            stamp, number = order[place] if order else (0.0, 0)
            start = keys.get(stamp, 0)
            if not runs or start - reached > WORTH:
                runs.append((start, []))
            runs[-1][1].append(time)
            reached = max(reached, number)
        return runs

    def _shown_from(self, start: int, times: Sequence[float], errors: list[str]) -> list[VideoFrame]:
        """Decode from packet number `start` up to the last of `times`; returns the frame shown at each."""
        self.stream.codec_context.flush_buffers()
        shown: list[VideoFrame] = []
        last: VideoFrame | None = None
        for frame in decoded(self.packets[start:], errors):
            now = self._time(frame)
            while len(shown) < len(times) and times[len(shown)] < now:
                shown.append(last or frame)
            last = frame
            if len(shown) == len(times):
                return shown
        errors += self.end
        return shown + [last] * (len(times) - len(shown)) if last else []

    def _time(self, frame: VideoFrame) -> float:
        stamp = _stamp(frame.pts, frame.dts)
        return stamp * float(self.stream.time_base or 0) if stamp is not None else -np.inf


def _stamp(presentation: int | None, decoding: int | None) -> int | None:
    return decoding if presentation is None else presentation


def centre(frame: VideoFrame, side: int, pixels: Pixels) -> NDArray[np.uint8]:
    """Return the middle (channels, side, side) of a frame with its short side resized to 8/7 of that.

    For 224 pixels that is 256, as networks are tested.
    """
    scale = side * SHORT / min(frame.width, frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    left, top = (width - side) // 2, (height - side) // 2
    return _resized(frame, width, height, pixels)[:, top : top + side, left : left + side]


def _whole(frame: VideoFrame) -> NDArray[np.uint8]:
    return _resized(frame, frame.width, frame.height, GRAY)


def _squashed(frame: VideoFrame, side: int, pixels: Pixels) -> NDArray[np.uint8]:
    return _resized(frame, side, side, pixels)


def _resized(frame: VideoFrame, width: int, height: int, pixels: Pixels) -> NDArray[np.uint8]:
    """Return a frame as (channels, height, width), bilinear over the whole area that a pixel covers."""
    from av.video.reformatter import Interpolation

    # Bit-exact arithmetic: the same frames, and so the same digest, on every processor.
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    small = frame.reformat(width, height, pixels.format, interpolation=exact, threads=1)
    return np.ascontiguousarray(small.to_ndarray().reshape(height, width, pixels.channels).transpose(2, 0, 1))
