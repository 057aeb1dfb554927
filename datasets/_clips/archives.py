"""Wanted members of zip and tar archives, read without unpacking anything; folders and case of their names are ignored.

Copies of UCF101 differ in both: one keeps its videos in a folder per class, another all in one, and the class
HandstandPushups has files with a capital S in some.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from benchmark.dataset import leaves_folder
from benchmark.errors import DataError


def read_zip(archive: Path, files: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the content of each of `files` in their order, None for one that the archive lacks.

    Raises DataError for a member outside the archive's folder.
    """
    with zipfile.ZipFile(archive) as bundle:
        members = {_key(archive, member.filename): member for member in bundle.infolist() if not member.is_dir()}
        for file in files:
            member = members.get(file.lower())
            yield bundle.read(member) if member else None


def read_tar(archive: Path, files: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield those of `files` that the archive holds, with their content, in its order: it is read once, as a stream.

    Raises DataError for a member outside the archive's folder.
    """
    wanted = {file.lower(): file for file in files}
    with tarfile.open(archive, "r|*") as bundle:
        for member in bundle:
            file = wanted.get(_key(archive, member.name))
            if file and member.isfile() and (stream := bundle.extractfile(member)):
                del wanted[file.lower()]
                yield file, stream.read()


def _key(archive: Path, member: str) -> str:
    if leaves_folder(member):
        raise DataError(
            f"{archive.name} is refused: its member {member!r} points outside the folder. Check where it comes from."
        )
    return PurePosixPath(member).name.lower()
