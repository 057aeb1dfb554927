"""Wanted members of zip and tar archives, read without unpacking anything; folders and case of their names are ignored.

Copies of UCF101 differ in both: one keeps its videos in a folder per class, another all in one, and the class
HandstandPushups has files with a capital S in some.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from benchmark.dataset import leaves_folder
from benchmark.errors import DataError


class Span(NamedTuple):
    """Where a member's bytes lie in an archive that is not compressed."""

    start: int
    size: int


def read_zip(archive: Path, files: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the content of each of `files` in their order, None for one that the archive lacks.

    Raises DataError for a member outside the archive's folder, and for no zip.
    """
    try:
        bundle = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive.name} is no whole zip archive ({error}). Fetch it again.") from None
    with bundle:
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


def tar_spans(archive: Path) -> Iterator[tuple[str, Span]]:
    """Yield name and place of every file in a tar archive that is not compressed, without reading any.

    Raises DataError for another file.
    """
    try:
        with tarfile.open(archive, "r:") as bundle:
            yield from ((member.name, Span(member.offset_data, member.size)) for member in bundle if member.isfile())
    except tarfile.ReadError as error:
        raise DataError(f"{archive.name} is no tar archive without compression ({error}). Fetch it again.") from None


def read_spans(archive: Path, spans: Sequence[Span]) -> list[bytes]:
    """Return the bytes at each of the places that `tar_spans` gave."""
    with archive.open("rb") as stream:
        found = []
        for span in spans:
            stream.seek(span.start)
            found.append(stream.read(span.size))
    return found


def _key(archive: Path, member: str) -> str:
    if leaves_folder(member):
        raise DataError(
            f"{archive.name} is refused: its member {member!r} points outside the folder. Check where it comes from."
        )
    return PurePosixPath(member).name.lower()
