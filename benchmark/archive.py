"""Unpacking the wanted members of an archive, each verified before it gets its name."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

from benchmark.dataset import Checksum, Manifest, leaves_folder
from benchmark.download import naming, part_of, size_of
from benchmark.hosts import UnavailableError


def unpack(archive: Path, manifest: Manifest, destination: Path) -> tuple[dict[str, str], int]:
    """Write a zip's members that the manifest names and that have its checksums below `destination`.

    A member is known by its path, with or without the archive's top folder. Returns what is wrong with each
    broken one and how many unknown ones were ignored. Raises UnavailableError for no zip or a member outside
    the folder.
    """
    broken: dict[str, str] = {}
    unknown = 0
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [member for member in bundle.infolist() if not member.is_dir()]
            outside = [member.filename for member in members if leaves_folder(member.filename)]
            if outside:
                raise UnavailableError(f"refused, its member {outside[0]!r} points outside the folder")
            for member in members:
                inner = member.filename.partition("/")[2]
                path = member.filename if member.filename in manifest.files else inner
                if path not in manifest.files:
                    unknown += 1
                elif fault := _extract(bundle, member, destination / path, manifest.files[path]):
                    broken[path] = fault
    except zipfile.BadZipFile as error:
        raise UnavailableError(f"{size_of(archive)} bytes that are no whole zip archive ({error})") from error
    return broken, unknown


def _extract(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, checksum: Checksum) -> str | None:
    """Write one verified member, unless it is there; returns what is wrong with it."""
    if target.is_file() and checksum.fault(target) is None:
        return None
    if checksum.size is not None and member.file_size != checksum.size:
        return f"{member.file_size} bytes instead of {checksum.size}"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    try:
        with naming(part), bundle.open(member) as packed, part.open("wb") as stream:
            shutil.copyfileobj(packed, stream)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        fault: str | None = f"unreadable ({error})"
    else:
        fault = checksum.fault(part)
    if fault:
        part.unlink(missing_ok=True)
    else:
        part.replace(target)
    return fault
