"""How a segment's frames, flow and sound are found and decoded: all three lie in archives that stay packed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets._clips.archives import Span, read_spans, read_zip, tar_spans
from datasets._clips.frames import GRAY
from datasets._clips.sound import STANDARD_RATE, STANDARD_SAMPLES, Sound, read_wave, standard_spectrogram
from datasets._clips.stills import still_frames
from datasets._clips.windows import FRAMES, Shapes, Window, window
from datasets.epic_kitchens.segments import Segment

SECONDS = STANDARD_SAMPLES / STANDARD_RATE
FLOW_STEP = 2
"""Flow is stored for every second frame."""
DIRECTIONS = ("u", "v")
_FRAME = re.compile(r"frame_(\d+)\.jpg")

Spans = Mapping[int, Span]
"""Where the frames of a video lie in its archive, by number."""


@dataclass(frozen=True)
class Stills:
    """Frames in an archive, None for one that it lacks."""

    archive: Path
    spans: tuple[Span | None, ...]

    def read(self) -> list[bytes | None]:
        """Return the bytes of every frame."""
        contents = iter(read_spans(self.archive, [span for span in self.spans if span]))
        return [next(contents) if span else None for span in self.spans]


@dataclass(frozen=True)
class Cut:
    """A segment's window: its frames, its flow by direction (empty where none is wanted), and its sound."""

    frames: Stills
    flow: Mapping[str, Stills]
    sound: Sound


def numbers(segment: Segment, frames: int = FRAMES) -> list[int]:
    """Return the numbers of the frames of a segment's window."""
    return [segment.first + number for number in window(segment.last - segment.first, frames)]


def frame_spans(archive: Path) -> dict[str, dict[int, Span]]:
    """Return where the frames in an archive lie, by the name of their folder."""
    found: dict[str, dict[int, Span]] = {}
    for name, span in tar_spans(archive):
        path = PurePosixPath(name)
        match = _FRAME.fullmatch(path.name)
        if match:
            found.setdefault(path.parent.name, {})[int(match[1])] = span
    return found


def read_cuts(raw: Path, audio: Path, segments: Sequence[Segment], frames: int, *, flow: bool) -> Iterator[Cut]:
    """Yield the windows of `segments`, which are sorted by video, in their order.

    Of one video after another it is looked up where its frames lie, and its recording is read; `audio` holds those.
    """
    videos = [(video, list(members)) for video, members in groupby(segments, key=lambda segment: segment.video)]
    recordings = read_zip(audio, [f"{video}.wav" for video, _ in videos])
    for (_, members), content in zip(videos, recordings, strict=True):
        where = raw / members[0].archive("rgb")
        spans = {number: span for own in frame_spans(where).values() for number, span in own.items()}
        moving = raw / members[0].archive("flow")
        flows = frame_spans(moving) if flow else {}
        sound = Sound(np.zeros(0, np.float32), STANDARD_RATE, ("no file",))
        if content is not None:
            sound = read_wave(content, STANDARD_RATE)
        for segment in members:
            wanted = numbers(segment, frames)
            halves = [-(-number // FLOW_STEP) for number in wanted]
            yield Cut(
                _stills(where, spans, wanted),
                {axis: _stills(moving, flows.get(axis, {}), halves) for axis in DIRECTIONS if flow},
                sound.excerpt(segment.start, min(segment.stop, segment.start + SECONDS)),
            )


def _stills(archive: Path, spans: Spans, wanted: Sequence[int]) -> Stills:
    return Stills(archive, tuple(spans.get(number) for number in wanted))


def decode(cut: Cut, shapes: Shapes) -> Window:
    """Return a window's arrays; black frames, no motion and silence stand for what is not there."""
    side = shapes["video"][-1]
    video = still_frames(cut.frames.read(), side)
    inputs: dict[str, NDArray[Any]] = {"audio": standard_spectrogram(cut.sound), "video": video.images}
    faults = [f"video {fault}" for fault in video.faults] + [f"audio {fault}" for fault in cut.sound.faults]
    if cut.flow:
        flows = {axis: still_frames(stills.read(), side, GRAY) for axis, stills in cut.flow.items()}
        inputs["flow"] = np.concatenate([found.images for found in flows.values()])
        faults += [f"flow {axis} {fault}" for axis, found in flows.items() for fault in found.faults]
    return Window(inputs, tuple(faults), found=any(cut.frames.spans))
