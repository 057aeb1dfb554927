"""What a fetch has to bring, before it brings anything: what is there, what is not, how large that is, and the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from rich.filesize import decimal

from benchmark.dataset import Manifest, Source, Verification
from benchmark.download import Downloader, part_of, size_of
from benchmark.threads import each

ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class Wanted:
    """A file to bring to `path` below the raw folder, and its size in bytes where somebody says it.

    It may be near already: `here`, an archive to unpack, or in the `mirror`.
    """

    path: str
    urls: tuple[str, ...]
    size: int | None
    lies: str = ""


@dataclass(frozen=True)
class Plan:
    """What was found of a source, and the files to bring for it; without any, and incomplete, it is brought by hand.

    An archive with a manifest is one file, of which `unpacked` bytes are then unpacked.
    """

    source: Source
    check: Verification
    files: tuple[Wanted, ...] = ()
    unpacked: int = 0

    @property
    def by_hand(self) -> bool:
        """Whether a person has to bring it."""
        return not (self.check.complete or self.files)


@dataclass(frozen=True)
class Survey:
    """All plans of a fetch into `destination`, and the free bytes there."""

    destination: Path
    plans: tuple[Plan, ...]
    free: int

    @property
    def needed(self) -> int:
        """Bytes that have to find room, as far as sizes are known; those of unfinished downloads have it already."""
        files = [file for plan in self.plans for file in plan.files if file.lies != "here"]
        begun = sum(size_of(part_of(self.destination / file.path)) for file in files)
        return max(0, sum(file.size or 0 for file in files) - begun) + sum(plan.unpacked for plan in self.plans)

    def shortage(self) -> str | None:
        """Return in one sentence that the disk is too small, or None."""
        if self.needed <= self.free:
            return None
        return f"{decimal(self.needed)} are needed in {self.destination}, where {decimal(self.free)} are free."

    def lines(self, owner: str) -> Iterator[str]:
        """Yield what `--dry-run` prints."""
        for plan in self.plans:
            yield f"{plan.check}{self._rest(plan)}"
        files = [file for plan in self.plans for file in plan.files if not file.lies]
        if files:
            yield f"{owner}: to download: {_amount(files)}"
        by_hand = [plan.source.file for plan in self.plans if plan.by_hand]
        if by_hand:
            yield f"{owner}: to be brought by hand: {', '.join(by_hand)}"
        yield f"{decimal(self.free)} are free in {self.destination}"
        short = self.shortage()
        if short:
            yield f"The disk is too small: {short}"

    def _rest(self, plan: Plan) -> str:
        if plan.check.complete:
            return ""
        if plan.by_hand:
            return f"; to be brought by hand: {plan.source.obtain} Put it into {self.destination}."
        texts = {"here": "to unpack", "mirror": "to copy from the mirror", "": "to download"}
        found = {text: [file for file in plan.files if file.lies == lies] for lies, text in texts.items()}
        begun = sum(size_of(part_of(self.destination / file.path)) for file in plan.files)
        parts = [f"{text}: {_amount(files)}" for text, files in found.items() if files]
        return "; " + "; ".join([*parts, *([f"{decimal(begun)} of it are here"] if begun else [])])


def _amount(files: Sequence[Wanted]) -> str:
    """Return number and size of files in words."""
    known = [file.size for file in files if file.size is not None]
    unknown = len(files) - len(known)
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    if not known:
        return f"{count} of unknown size"
    more = f" and {unknown:,} of unknown size" if unknown else ""
    return f"{count}, {decimal(sum(known))}{more}"


def survey(sources: Sequence[Source], destination: Path, mirror: Path | None, downloader: Downloader) -> Survey:
    """Compare what is below `destination` with the sources, and ask hosts for the sizes that no card states."""
    checks: dict[str, Verification] = {}

    def check(source: Source) -> None:
        checks[source.file] = source.check(destination)

    each(check, sources, ASKED_AT_ONCE, downloader.stopped)
    plans = [_plan(source, checks[source.file], destination, mirror) for source in sources]
    sizes = _asked(downloader, [file for plan in plans for file in plan.files])
    sized = (replace(plan, files=tuple(sizes.get(file.path, file) for file in plan.files)) for plan in plans)
    return Survey(destination, tuple(sized), _free(destination))


def _plan(source: Source, check: Verification, destination: Path, mirror: Path | None) -> Plan:
    if check.complete or source.suffix:
        return Plan(source, check)

    def wanted(path: str, urls: tuple[str, ...], size: int | None, others: bool = False) -> tuple[Wanted, ...]:
        copy = mirror / path if mirror else None
        if source.manifest and path == source.file and (destination / path).is_file():
            return (Wanted(path, urls, size, "here"),)
        if copy and copy.is_file():
            return (Wanted(path, urls, size or size_of(copy), "mirror"),)
        return (Wanted(path, urls, size),) if urls or others else ()

    manifest, missing = source.manifest, (*check.missing, *check.broken)
    if manifest is None:
        stated = source.checksum.size if source.checksum else None
        return Plan(source, check, wanted(source.file, source.urls, stated))
    archive = wanted(source.file, source.urls, None) if source.urls or source.obtain else ()
    if archive:
        return Plan(source, check, archive, sum(manifest.files[path].size or 0 for path in missing))
    singles = (wanted(path, urls_of(manifest, path), manifest.files[path].size, bool(manifest.lfs)) for path in missing)
    return Plan(source, check, tuple(file for single in singles for file in single))


def urls_of(manifest: Manifest, path: str) -> tuple[str, ...]:
    """Return where a single file of a manifest can be had."""
    return tuple(url.format(path=quote(path)) for url in manifest.urls)


def _asked(downloader: Downloader, files: Sequence[Wanted]) -> dict[str, Wanted]:
    """Return the files of unknown size whose hosts say it, by path, with their sizes."""
    found: dict[str, Wanted] = {}

    def ask(file: Wanted) -> None:
        for url in file.urls:
            size = downloader.size(url)
            if size is not None:
                found[file.path] = replace(file, size=size)
                return

    each(ask, [file for file in files if file.size is None and not file.lies], ASKED_AT_ONCE, downloader.stopped)
    return found


def _free(folder: Path) -> int:
    """Return the bytes that are free where a folder is or is going to be."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return shutil.disk_usage(there).free
