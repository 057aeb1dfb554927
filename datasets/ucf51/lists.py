"""Which clips the official lists of UCF101 name, and which part of each split they are in."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path, PurePosixPath

from benchmark.dataset import hash_order
from benchmark.errors import DataError
from datasets._clips.archives import read_zip

TRAIN, TEST = "trainlist01.txt", "testlist01.txt"
VALIDATION_GROUPS = frozenset({24, 25})
PAPER_GROUPS = frozenset({1, 2, 3, 9, 15})
"""One of 924 choices of five groups for a test with as many clips as RGM's."""
CLIPS, PAPER_TEST, VALIDATION = 6845, 1379, 541
"""Clips in the 51 classes, in RGM's test and in the validation groups: the shares of the split without groups."""


def group(name: str) -> int:
    """Return the group of a clip, which is the video it was cut from: names are `v_<class>_g<group>_c<clip>`."""
    return int(name.split("_")[-2].removeprefix("g"))


def read_lists(archive: Path, classes: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the clips of `classes` in the first training and the first test list, each with its class.

    The class is the folder, in which the class HandstandPushups has its own name, unlike in its files. Raises
    DataError for an archive without the lists.
    """
    train, test = read_zip(archive, (TRAIN, TEST))
    if train is None or test is None:
        raise DataError(f"{archive.name} lacks {TRAIN if train is None else TEST}. Check where it comes from.")
    return _read(train, classes), _read(test, classes)


def _read(text: bytes, classes: Sequence[str]) -> dict[str, int]:
    """Read rows of `<class>/<file>`, in the training lists followed by a number."""
    numbers = {name.lower(): number for number, name in enumerate(classes)}
    paths = [PurePosixPath(row.split()[0]) for row in text.decode("ascii").splitlines() if row.strip()]
    return {path.stem: numbers[folder] for path in paths if (folder := path.parent.name.lower()) in numbers}


def group_parts(names: Sequence[str], test: Set[str]) -> list[str]:
    """Return each clip's part when `test` is given and whole groups of the others are held out for validation."""
    return ["test" if name in test else "val" if group(name) in VALIDATION_GROUPS else "train" for name in names]


def shuffled_parts(names: Sequence[str]) -> list[str]:
    """Return each clip's part in hash order whatever its group, in the shares of `paper-size`: test, val, train."""
    test, val = (len(names) * count // CLIPS for count in (PAPER_TEST, VALIDATION))
    parts = ["train"] * len(names)
    for rank, position in enumerate(hash_order([f"ucf51:clip:{name}" for name in names])[: test + val]):
        parts[position] = "test" if rank < test else "val"
    return parts
