"""The clips of UCF-51 with optical flow that is computed from their videos, where `ucf51` has a published one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmark.dataset import DatasetCard
from datasets._clips.flow import estimator, segment_motion
from datasets._clips.pool import decode_all
from datasets.ucf51 import FLOW, UCF51
from datasets.ucf51.clips import SEGMENTS, Decoded, Note, VideoFile, crashed_flow, decode_flow

if TYPE_CHECKING:
    from benchmark.preparation import PreparedWriter


class UCF51ComputedFlow(UCF51):
    """UCF-51 with TV-L1 flow: nobody documents how the published one was made, and this one anybody can make.

    Both have the same levels for the same motion, at the same places of the same clips.
    """

    card: ClassVar[DatasetCard] = replace(
        UCF51.card,
        name="ucf51_computed_flow",
        title="UCF-51: human actions in frames and computed optical flow",
        citation=f"{UCF51.card.citation.partition('; flow: ')[0]}; flow: Zach, Pock and Bischof, A Duality Based "
        "Approach for Realtime TV-L1 Optical Flow, DAGM 2007",
        sources=tuple(source for source in UCF51.card.sources if source.file != FLOW),
        raw=UCF51.card.name,
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Store what `ucf51` does, with flow that is computed; raises DataError where OpenCV is not installed."""
        estimator()  # before anything is decoded
        super().prepare(raw, out)

    def flows(self, raw: Path, names: Sequence[str], done: int, jobs: int | None) -> Iterator[Decoded]:
        """Yield the flow of every clip but the first `done`, in their order."""
        return decode_all(computed, self.videos(raw, names[done:]), crashed, jobs)


def computed(file: VideoFile) -> Decoded:
    """Return the motion in the middle of three segments, none where there is no file."""
    clip, content = file
    if content is None:
        return decode_flow((clip, {}))
    found = segment_motion(content, SEGMENTS)
    return Decoded(found.images, Note(clip, found.seconds, found.faults))


def crashed(file: VideoFile) -> Decoded:
    """Return no motion, for a clip that took the decoder's process down."""
    return crashed_flow((file[0], {}))
