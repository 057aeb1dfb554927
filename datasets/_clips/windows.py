"""Two seconds of action: which frames and which sound a clip is known by, and how they are stored.

This is what SimMMDG (Dong et al., NeurIPS 2023) trains SlowFast on, and after it what compares with it. One thing
differs: training sees the window in the middle of a clip, as testing does, and not one at random, since prepared data
hold one window of every clip.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets._clips.frames import GRAY, RGB, SIDE
from datasets._clips.report import Note, flow_report
from datasets._clips.sound import STANDARD_SHAPE

if TYPE_CHECKING:
    from benchmark.preparation import PreparedWriter

FRAMES, STEP = 32, 2
SHAPES = {"audio": STANDARD_SHAPE, "video": (3, FRAMES, SIDE, SIDE)}
SHAPES_WITH_FLOW = {**SHAPES, "flow": (2, FRAMES, SIDE, SIDE)}
DTYPES = {"audio": np.float16, "video": np.uint8, "flow": np.uint8}
BLANK = {"audio": 0, "video": RGB.blank, "flow": GRAY.blank}
Shapes = Mapping[str, tuple[int, ...]]
"""Shape of one sample per modality, as a card has it: it says how many frames of what size are wanted."""
CRASHED = "takes the decoder down"


def window(length: int, frames: int = FRAMES) -> list[int]:
    """Return the numbers of `frames` of `length` frames: every second one of the middle 64, where they are 32.

    In a shorter clip they start with the first and go on from the beginning after the last.
    """
    first = max(0, (length - STEP * frames + 1) // 2)
    return [(first + STEP * number) % max(length, 1) for number in range(frames)]


@dataclass(frozen=True)
class Window:
    """A clip's arrays by modality, without a batch dimension, and what was wrong with it.

    `rate` is that of its frames per second, 0 where unknown; `found` says whether it has a file at all.
    """

    inputs: Mapping[str, NDArray[Any]]
    faults: tuple[str, ...] = ()
    rate: float = 0.0
    found: bool = True

    @property
    def note(self) -> Note:
        """What is kept of it beside the arrays."""
        return Note(self.faults, self.rate, self.found)


def crashed(_clip: object, shapes: Shapes) -> Window:
    """Return what stands for a clip that took the decoder's process down: black, still and silent."""
    return Window({m: np.full(shape, BLANK[m], DTYPES[m]) for m, shape in shapes.items()}, (CRASHED,))


def store(out: PreparedWriter, clips: Sequence[str], windows: Callable[[int], Iterable[Window]]) -> dict[str, Note]:
    """Store the arrays of every clip and say how flow lies; returns what else is known of each.

    `windows` gives those of the clips from a number on.
    """

    def made(done: int) -> Generator[tuple[Mapping[str, NDArray[Any]], Note], None, None]:
        return ((window.inputs, window.note) for window in windows(done))

    notes = out.store(clips, {modality: DTYPES[modality] for modality in out.card.modalities}, made, Note)
    if "flow" in out.card.shapes:
        out.say(flow_report(out.stored("flow")))
    return dict(zip(clips, notes, strict=True))
