"""The same clips for everybody: some of a folder that is laid out as CREMA-D is, and lists of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.dataset import PARTS, Checksum, DatasetCard, Manifest, Source, file_digest
from benchmark.errors import UsageError
from datasets.cremad.clips import AUDIO, VIDEO, emotion

HELD_OUT = 12
"""Clips that nobody trains on; our preparation wants some in every part."""
LIST, MANIFEST = "{part}.csv", "manifest.csv"


@dataclass(frozen=True)
class Clips:
    """Names by part; their files are links in `folder`."""

    folder: Path
    parts: dict[str, tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        """All names, ascending."""
        return sorted(name for part in self.parts.values() for name in part)


def complete_names(folder: Path) -> list[str]:
    """Return the names of the clips below `folder` that have a recording and a video."""
    recordings = {file.stem for file in (folder / AUDIO).glob("*.wav")}
    return sorted(recordings & {file.stem for file in (folder / VIDEO).glob("*.flv")})


def spread(source: Path, count: int) -> dict[str, tuple[str, ...]]:
    """Return the names of `count` clips to train on and of those that are held out, by part, all over the actors.

    Raises UsageError where `source` has too few.
    """
    names, wanted = complete_names(source), count + HELD_OUT
    if len(names) < wanted:
        raise UsageError(
            f"{source} has {len(names)} clips with a file in {AUDIO} and one in {VIDEO}; {count} to train on and "
            f"{HELD_OUT} others are needed. Give a folder as CREMA-D's, or fewer clips with --clips."
        )
    found = [names[number * len(names) // wanted] for number in range(wanted)]
    held = [found[number * wanted // HELD_OUT] for number in range(HELD_OUT)]
    train = tuple(name for name in found if name not in held)
    return {"train": train, "val": tuple(held[::2]), "test": tuple(held[1::2])}


def chosen(source: Path, count: int, folder: Path) -> Clips:
    """Link the clips that `spread` names below a folder; raises as that does."""
    clips = Clips(folder, spread(source, count))
    for name in clips.names:
        for path in files_of(name):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((source / path).resolve())
    return clips


def files_of(name: str) -> tuple[str, str]:
    """Return the paths of a clip's recording and video."""
    return f"{AUDIO}/{name}.wav", f"{VIDEO}/{name}.flv"


def write_list(file: Path, names: tuple[str, ...]) -> None:
    """Write a list as OGM-GE publishes them: name and emotion, no header."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([name, emotion(name)] for name in names)


def write_sources(clips: Clips) -> None:
    """Write our lists and checksums of the clips; our training list has those to validate on, too."""
    parts = {**clips.parts, "train": (*clips.parts["train"], *clips.parts["val"])}
    for part, names in parts.items():
        write_list(clips.folder / LIST.format(part=part), names)
    with (clips.folder / MANIFEST).open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "sha256", "size"])
        for path in (path for name in clips.names for path in files_of(name)):
            rows.writerow([path, file_digest(clips.folder / path), (clips.folder / path).stat().st_size])


def card_of(card: DatasetCard, folder: Path) -> DatasetCard:
    """Return CREMA-D's card for the clips that `write_sources` described."""
    lists = [LIST.format(part=part) for part in PARTS]
    own = [Source(file=file, urls=("-",), checksum=Checksum(file_digest(folder / file))) for file in lists]
    return replace(card, sources=(Source(file="clips", manifest=Manifest(folder / MANIFEST, ("-",))), *own))
