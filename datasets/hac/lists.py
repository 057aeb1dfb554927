"""What the published lists of HAC say, and which part of a split a clip is in."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import DataError
from datasets._clips.holdout import held_out

LISTED = ("train", "test")
VALIDATION = 0.2
"""Share of a class in a domain's training list that is held out; the published lists have no validation part."""
_EXCERPT = re.compile(r"(.{11})(?:-\d{3}|_\d{6}_\d{6})")
"""Names of excerpts of a YouTube video begin with its id; other names say nothing of their origin."""


@dataclass(frozen=True)
class Listed:
    """A clip of the published lists: its domain, its file's name without suffix, its class and its part.

    `part` is that of the split `official`: "" for one of the training list whose video the test list has clips of.
    """

    domain: str
    name: str
    label: int
    part: str

    @property
    def id(self) -> str:
        """Return what it is called in the suite: the same names are given in several domains."""
        return f"{self.domain}/{self.name}"

    @property
    def legacy(self) -> str:
        """Return the part in the split `legacy`, which trains on what was cut from the videos of test clips, too."""
        return self.part or "train"


def list_file(part: str, domain: str) -> str:
    """Return the name of a published list."""
    return f"HAC_{part}_only_{domain}.csv"


def origin(name: str) -> str:
    """Return the video that a clip was cut from, as far as its name tells."""
    match = _EXCERPT.fullmatch(name)
    return match[1] if match else name


def read_list(file: Path, classes: int) -> dict[str, int]:
    """Return the class of every clip of a published list; raises DataError for a row that is none."""
    with file.open(newline="", encoding="ascii") as stream:
        rows = [row for row in csv.reader(stream) if row]
    for row in rows:
        if len(row) != 2 or not row[0].endswith(".mp4") or not row[1].isdigit() or int(row[1]) >= classes:
            raise DataError(f"{file.name}: row {','.join(row)!r} is no clip and class below {classes}. Fetch it again.")
    return {name.removesuffix(".mp4"): int(label) for name, label in rows}


def domain_parts(domain: str, train: Mapping[str, int], test: Mapping[str, int]) -> dict[str, str]:
    """Return the part of every clip in a domain's two lists: one that is in both is a test clip.

    One for training is in no part ("") where test clips are cut from the same video. Validation is cut from the others,
    class by class, without cutting through the clips of one video.
    """
    tested = {origin(name) for name in test}
    parts = {**dict.fromkeys(train, ""), **dict.fromkeys(test, "test")}
    rest = sorted(name for name in train if origin(name) not in tested)
    held = held_out([f"hac:{domain}:{origin(name)}" for name in rest], [train[name] for name in rest], VALIDATION)
    return parts | {name: "val" if out else "train" for name, out in zip(rest, held, strict=True)}


def read_lists(raw: Path, domains: tuple[str, ...], classes: int) -> tuple[list[Listed], Set[str]]:
    """Return every listed clip, domain by domain in the order of their names, and the ids of those listed twice.

    Raises DataError where a clip's two classes differ.
    """
    clips, twice = [], set()
    for domain in domains:
        train, test = (read_list(raw / list_file(part, domain), classes) for part in LISTED)
        for name in train.keys() & test.keys():
            if train[name] != test[name]:
                raise DataError(
                    f"HAC: {name} of {domain} is of class {train[name]} in the training and of class {test[name]} in "
                    "the test list. Fetch both again."
                )
            twice.add(f"{domain}/{name}")
        parts, labels = domain_parts(domain, train, test), train | test
        clips += [Listed(domain, name, labels[name], parts[name]) for name in sorted(labels)]
    return clips, twice
