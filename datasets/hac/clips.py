"""How a clip of HAC is read and decoded: its video, the flow and the recording beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets._clips.archives import read_zip
from datasets._clips.frames import GRAY, RGB, Frames, numbered_frames
from datasets._clips.sound import STANDARD_RATE, Sound, read_wave, standard_spectrogram
from datasets._clips.windows import FRAMES, Shapes, Window, window
from datasets.hac.lists import Listed

RATE = 24.0
"""Frames per second that the released code takes every video to have."""
DIRECTIONS = ("x", "y")
NO_FILE = "no file"


@dataclass(frozen=True)
class Files:
    """A clip's files, None for one that the archive lacks; `flow` by direction, empty where none is wanted."""

    video: bytes | None
    audio: bytes | None
    flow: Mapping[str, bytes | None] = field(default_factory=dict)


def archive(domain: str) -> str:
    """Return the name of a domain's archive."""
    return f"{domain}.zip"


def read_files(raw: Path, clips: Sequence[Listed], *, flow: bool) -> Iterator[Files]:
    """Yield the files of `clips`, which are sorted by domain, in their order."""
    endings = (".mp4", ".wav", *(f"_flow_{axis}.mp4" for axis in DIRECTIONS if flow))
    for domain, members in groupby(clips, key=lambda clip: clip.domain):
        contents = read_zip(raw / archive(domain), [f"{clip.name}{end}" for clip in members for end in endings])
        while found := list(islice(contents, len(endings))):
            video, audio, *flows = found
            yield Files(video, audio, dict(zip(DIRECTIONS, flows, strict=True)) if flow else {})


def numbers(count: int, frames: int = FRAMES) -> list[int]:
    """Return the numbers of the frames of a window in a video of `count`; the released code counts both from 1."""
    return [max(0, number - 1) for number in window(max(count - 1, 1), frames)]


def decode(files: Files, shapes: Shapes) -> Window:
    """Return the middle window of a clip, its flow at the same frames, and what is heard from first to last frame.

    Black frames, no motion and silence stand for files that are not there. The released code ends the sound with the
    frame that is last in order, so that it may hear little or nothing of a clip of fewer than 64 frames, and takes flow
    from the middle of its own length, which may be a frame aside.
    """
    _, frames, side, _ = shapes["video"]
    video = Frames(RGB.blanks(frames, side), 0.0, (NO_FILE,))
    if files.video is not None:
        video = numbered_frames(files.video, frames, partial(numbers, frames=frames), side)
    sound = Sound(np.zeros(0, np.float32), STANDARD_RATE, (NO_FILE,))
    if files.audio is not None:
        sound = read_wave(files.audio, STANDARD_RATE)
    # Without a video the recording says how long it must have been.
    chosen = numbers(video.count or round(sound.seconds * RATE), frames)
    rate = video.rate or RATE
    heard = sound.excerpt(min(chosen) / rate, max(chosen) / rate)
    flows = {axis: _flow(content, chosen, side) for axis, content in files.flow.items()}
    inputs: dict[str, NDArray[Any]] = {"audio": standard_spectrogram(heard), "video": video.images}
    if flows:
        inputs["flow"] = np.concatenate([found.images for found in flows.values()])
    faults = [f"video {fault}" for fault in video.faults] + [f"audio {fault}" for fault in heard.faults]
    faults += [f"flow {axis} {fault}" for axis, found in flows.items() for fault in found.faults]
    faults += _lengths(video, sound, flows)
    return Window(inputs, tuple(faults), video.rate, found=files.video is not None)


def _flow(content: bytes | None, chosen: Sequence[int], side: int) -> Frames:
    if content is None:
        return Frames(GRAY.blanks(len(chosen), side), 0.0, (NO_FILE,))
    return numbered_frames(content, len(chosen), lambda _: chosen, side, GRAY)


def _lengths(video: Frames, sound: Sound, flows: Mapping[str, Frames]) -> list[str]:
    """Return as faults that recording or flow can hardly be those of the video."""
    faults = []
    if video.seconds and sound.seconds and not 0.5 <= video.seconds / sound.seconds <= 2:
        faults.append(f"video of {video.seconds:.1f} s beside a recording of {sound.seconds:.1f} s")
    for axis, found in flows.items():
        if video.count and found.count and abs(video.count - 1 - found.count) > 1:
            faults.append(f"video of {video.count} frames beside {found.count} of flow {axis}")
    return faults
