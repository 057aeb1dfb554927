"""Which segments of which videos are annotated, and which part of a split they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import DataError
from datasets._clips.holdout import held_out
from datasets.epic_kitchens.tables import read_table

LISTED = ("train", "test")
VALIDATION = 0.15
"""Share of a domain's training segments in videos that are held out; the published lists have no validation part."""


@dataclass(frozen=True)
class Segment:
    """An annotated action: frames `first` to `last` (from 1, 60 a second), seconds `start` to `stop` of a video."""

    domain: str
    listed: str
    video: str
    number: int
    label: int
    first: int
    last: int
    start: float
    stop: float

    @property
    def id(self) -> str:
        """Return what it is called in the suite; its number is that of the annotations."""
        return f"{self.video}-{self.number}"

    def archive(self, stream: str) -> str:
        """Return the path of the archive with the video's frames, as published: `stream` is `rgb` or `flow`."""
        return f"frames_rgb_flow/{stream}/{self.listed}/{self.video.partition('_')[0]}/{self.video}.tar"


def list_file(domain: str, listed: str) -> str:
    """Return the name of a published list."""
    return f"{domain}_{listed}.pkl"


def seconds(text: str) -> float:
    """Return a time of the form hours:minutes:seconds."""
    hours, minutes, rest = text.split(":")
    return (int(hours) * 60 + int(minutes)) * 60 + float(rest)


def read_segments(raw: Path, domains: Sequence[str], classes: int) -> list[Segment]:
    """Return the segments of all lists, by domain, list and video in the order of time.

    Raises DataError for a list without the columns that are needed, or a class that is none.
    """
    found = [segment for domain in domains for listed in LISTED for segment in _read(raw, domain, listed)]
    for segment in found:
        if not 0 <= segment.label < classes:
            raise DataError(
                f"{list_file(segment.domain, segment.listed)}: {segment.id} is of class {segment.label}, not of one "
                f"below {classes}. Fetch it again."
            )
    places = {domain: place for place, domain in enumerate(domains)}
    return sorted(found, key=lambda s: (places[s.domain], s.listed, s.video, s.first, s.number))


def _read(raw: Path, domain: str, listed: str) -> list[Segment]:
    name = list_file(domain, listed)
    table = read_table(raw / name)
    needed = ("video_id", "uid", "verb_class", "start_frame", "stop_frame", "start_timestamp", "stop_timestamp")
    lacking = [column for column in needed if column not in table]
    if lacking:
        raise DataError(f"{name} lacks the column {lacking[0]!r}. Check where it comes from.")
    rows = zip(*(table[column].tolist() for column in needed), strict=True)
    return [
        Segment(domain, listed, video, number, label, first, last, seconds(start), seconds(stop))
        for video, number, label, first, last, start, stop in rows
    ]


def official_parts(segments: Sequence[Segment]) -> list[str]:
    """Return the part of every segment: whole videos of each training list are held out for validation."""
    domains = sorted({segment.domain for segment in segments})
    train = [segment for segment in segments if segment.listed == "train"]
    held = held_out(
        [f"epic_kitchens:{segment.video}" for segment in train],
        [domains.index(segment.domain) for segment in train],
        VALIDATION,
    )
    val = {segment.id for segment, out in zip(train, held, strict=True) if out}
    return ["test" if s.listed == "test" else "val" if s.id in val else "train" for s in segments]
