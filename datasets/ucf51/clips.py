"""How a clip's video and the optical flow beside it are decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets._clips.archives import read_tar
from datasets._clips.frames import GRAY, RGB, Frames, Pixels, segment_frames

SEGMENTS = 3
DIRECTIONS = {"u": "x", "v": "y"}

NO_FILE, CRASHED = "no file", "takes the decoder down"

VideoFile = tuple[str, bytes | None]
"""A clip and its file, if there is one."""
FlowFiles = tuple[str, Mapping[str, bytes]]
"""A clip and what there is of its two files, by direction."""


@dataclass(frozen=True)
class Note:
    """What is kept of a clip's video or flow beside its images: length in seconds and what was wrong with it."""

    clip: str
    seconds: float = 0.0
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """A clip's video (3, T, side, side) as RGB or its flow (2, T, side, side), u before v; uint8."""

    images: NDArray[np.uint8]
    note: Note


def flow_files(archive: Path, clips: Iterable[str]) -> Iterator[FlowFiles]:
    """Yield every clip with its files, in the order in which a stored tar completes them, then those it does not.

    A file waits in memory, compressed, for the other of its clip.
    """
    waiting: dict[str, dict[str, bytes]] = {clip: {} for clip in clips}
    files = {f"{clip}_flow_{axis}.mp4": (clip, axis) for clip in waiting for axis in DIRECTIONS.values()}
    for file, content in read_tar(archive, files):
        clip, axis = files[file]
        waiting[clip][axis] = content
        if len(waiting[clip]) == len(DIRECTIONS):
            yield clip, waiting.pop(clip)
    yield from waiting.items()


def decode_video(file: VideoFile) -> Decoded:
    """Return the frames in the middle of three segments, black where there is no file."""
    clip, content = file
    frames = _frames(content, RGB)
    return Decoded(frames.images, Note(clip, frames.seconds, frames.faults))


def decode_flow(files: FlowFiles) -> Decoded:
    """Return the flow in the middle of three segments, no motion where there is no file.

    Its frames lie at a constant rate that is not the video's, so the middle is found on their own clock, which is by
    position.
    """
    clip, contents = files
    found = {name: _frames(contents.get(axis), GRAY) for name, axis in DIRECTIONS.items()}
    seconds = min(frames.seconds for frames in found.values())
    faults = tuple(f"{name} {fault}" for name, frames in found.items() for fault in frames.faults)
    return Decoded(np.concatenate([frames.images for frames in found.values()]), Note(clip, seconds, faults))


def _frames(content: bytes | None, pixels: Pixels) -> Frames:
    if content is None:
        return Frames(pixels.blanks(SEGMENTS), 0.0, (NO_FILE,))
    return segment_frames(content, SEGMENTS, pixels=pixels)


def crashed_video(file: VideoFile) -> Decoded:
    """Return black frames, for a clip that took the decoder's process down."""
    return Decoded(RGB.blanks(SEGMENTS), Note(file[0], faults=(CRASHED,)))


def crashed_flow(files: FlowFiles) -> Decoded:
    """Return no motion, for a clip whose flow took the decoder's process down."""
    return Decoded(np.concatenate([GRAY.blanks(SEGMENTS)] * 2), Note(files[0], faults=(CRASHED,)))


def all_faults(video: Note, flow: Note) -> list[str]:
    """Return what was wrong with either, or with their lengths: flow is stored at 24 fps, videos have 25 to 30."""
    found = [f"{name} {fault}" for name, note in (("video", video), ("flow", flow)) for fault in note.faults]
    if video.seconds and flow.seconds and not 2 / 3 <= video.seconds / flow.seconds <= 3 / 2:
        found.append(f"video of {video.seconds:.1f} s beside flow of {flow.seconds:.1f} s")
    return found
