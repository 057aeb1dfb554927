"""Fetching sources, as a dataset has them: local copy, mirror, then every URL, with resume, retries and verification.

A file gets its final name only once its bytes are verified, and is never removed after that. An unfinished
download waits beside it as `<name>.part` and is resumed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import httpx
from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as ProgressBars

from benchmark.archive import unpack
from benchmark.dataset import (
    Checksum,
    Dataset,
    Manifest,
    Source,
    Verification,
    storage_error,
)
from benchmark.download import Downloader, Patience, Progress, UnavailableError, naming, part_of
from benchmark.errors import DataError, UsageError

MIRROR_VARIABLE = "EQUIPOISE_MIRROR"


def fetch(
    dataset: Dataset | type[Dataset],
    destination: Path,
    mirror: Path | None = None,
    *,
    progress: Progress = lambda *_: None,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> list[Verification]:
    """Bring every source of a dataset below `destination`, verified; returns what was found per source.

    `mirror` (None: the folder in EQUIPOISE_MIRROR, if set) holds files as `<dataset>/<file name>`, under the name of
    the dataset whose sources they are, and is looked at before any URL. Raises DataError when a source cannot be had
    or verified, or the disk is full.
    """
    card = dataset.card
    return fetch_sources(card.raw_name, card.sources, destination, mirror, progress=progress, patience=patience)


def fetch_sources(
    name: str,
    sources: Sequence[Source],
    destination: Path,
    mirror: Path | None = None,
    *,
    progress: Progress = lambda *_: None,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> list[Verification]:
    """Do what `fetch` does for the sources of whatever `equipoise fetch` knows as `name`."""
    if not sources:
        return []
    mirror = mirror or _mirror_from_environment()
    # No compression on the way: resuming counts bytes as they are stored.
    headers = {"Accept-Encoding": "identity", "User-Agent": "equipoise"}
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(destination / ".lock"),
            httpx.Client(follow_redirects=True, timeout=patience.stall, headers=headers) as client,
        ):
            local = mirror / name if mirror else None
            fetcher = _Fetcher(name, destination, local, Downloader(client, patience, progress))
            return [fetcher.source(source) for source in sources]
    except OSError as error:
        raise storage_error(error, error.filename or destination, f"equipoise fetch {name}") from error


def _mirror_from_environment() -> Path | None:
    text = os.environ.get(MIRROR_VARIABLE)
    if not text:
        return None
    if not Path(text).is_dir():
        raise UsageError(f"{MIRROR_VARIABLE} is {text!r}, which is no folder. Correct or unset it.")
    return Path(text).resolve()


@dataclass(frozen=True)
class _Fetcher:
    owner: str
    destination: Path
    mirror: Path | None
    downloader: Downloader

    def source(self, source: Source) -> Verification:
        """Return the verification of a complete source; raises DataError when it cannot be completed."""
        check = source.check(self.destination)
        if check.complete:
            source.remember(self.destination)
            return check
        if source.suffix:
            raise self._failure(source, [f"{path} is missing" for path in check.missing])
        if source.manifest:
            return self._members(source, source.manifest)
        problems = self._file(source.file, source.urls, source.known(self.destination))
        if problems:
            raise self._failure(source, problems)
        source.remember(self.destination)
        return source.check(self.destination)

    def _file(self, name: str, urls: tuple[str, ...], checksum: Checksum | None) -> list[str]:
        """Bring one verified file to `destination / name`; returns what each way answered when none had it."""
        problems: list[str] = []
        for _, way in self._ways(name, urls, checksum, problems):
            _keep(way, self.destination / name)
            return []
        return problems

    def _members(self, source: Source, manifest: Manifest) -> Verification:
        """Unpack one copy of the archive after another until all is there, then ask for single files."""
        problems: list[str] = []
        unknown = 0
        archives = source.urls or source.obtain
        for origin, archive in self._ways(source.file, source.urls, source.checksum, problems) if archives else ():
            try:
                broken, unknown = unpack(archive, manifest, self.destination)
            except UnavailableError as error:
                problems.append(f"{origin}: {error}")
                continue
            check = source.check(self.destination)
            if check.complete:
                if archive.parent == self.destination:
                    _keep(archive, self.destination / source.file)
                return replace(check, unknown=check.unknown + unknown)
            missing = tuple(path for path in check.missing if path not in broken)
            broken = {**check.broken, **broken}
            problems.append(replace(check, source=origin, missing=missing, broken=broken, unknown=unknown).faults())
        problems += self._single_files(source, manifest)
        check = source.check(self.destination)
        if not check.complete:
            raise self._failure(source, problems)
        return replace(check, unknown=check.unknown + unknown)

    def _single_files(self, source: Source, manifest: Manifest) -> list[str]:
        """Fetch the members that are still wanted from their own URLs, up to the first that cannot be had."""
        check = source.check(self.destination)
        wanted = {path: manifest.files[path] for path in (*check.missing, *check.broken)}
        done, total = 0, sum(checksum.size or 0 for checksum in wanted.values())
        quiet = replace(self, downloader=replace(self.downloader, progress=lambda *_: None))
        # Where nobody states sizes, every file shows its own progress.
        fetcher = quiet if total else self
        for path, checksum in wanted.items() if manifest.urls else ():
            problems = fetcher._file(path, tuple(url.format(path=quote(path)) for url in manifest.urls), checksum)
            if problems:
                return problems
            done += checksum.size or 0
            if total:
                self.downloader.progress(f"{source.file}, file by file", done, total)
        return []

    def _ways(
        self, name: str, urls: tuple[str, ...], checksum: Checksum | None, problems: list[str]
    ) -> Iterator[tuple[str, Path]]:
        """Yield origin and local path of each copy: what is there, the mirror's, one download after another.

        Each has the right checksum, if there is one. A download is a `.part`: who accepts it gives it its
        final name.
        """
        target = self.destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        for local in (target, self.mirror / name if self.mirror else None):
            if local is not None and local.is_file():
                fault = checksum.fault(local) if checksum else None
                if fault is None:
                    yield str(local), local
                else:
                    problems.append(f"{local}: {fault}")
        if not urls and not problems:
            problems.append(f"{name} is not there")
        part = part_of(target)
        for number, url in enumerate(urls):
            if checksum is None and number:
                part.unlink(missing_ok=True)  # nothing says that both URLs give the same bytes
            try:
                self.downloader.complete(url, part, checksum)
            except UnavailableError as error:
                problems.append(f"{url}: {error}")
            else:
                yield url, part
                part.unlink()

    def _failure(self, source: Source, problems: list[str]) -> DataError:
        name, found = f"{self.owner}: {source.file}", "; ".join(problems)
        again = f"run `equipoise fetch {self.owner}` again; finished files are kept"
        if source.obtain:
            return DataError(
                f"{name} has to be brought by hand ({found}). {source.obtain} "
                f"Put it into {self.destination} and {again}."
            )
        return DataError(
            f"{name} could not be fetched ({found}). Check the connection, or put it into {self.destination} or, "
            f"as {self.owner}/{source.file}, into the folder named by {MIRROR_VARIABLE}, and {again}."
        )


def _keep(way: Path, target: Path) -> None:
    """Give a verified file its final name, in one rename; a mirror's file is copied first."""
    part = part_of(target)
    if way not in (part, target):
        with naming(part):
            shutil.copyfile(way, part)
    if way != target:
        part.replace(target)


@contextmanager
def console_progress(console: Console | None = None) -> Iterator[Progress]:
    """Give a progress callback: bars on a terminal, elsewhere a plain line every two seconds."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    speed = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with ProgressBars(TextColumn("{task.description}"), BarColumn(), *speed, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield draw


def _plain_lines(console: Console, every: float = 2.0) -> Progress:
    last = time.monotonic()

    def show(name: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            of = f" of {total / 1e6:.1f}" if total else ""
            console.print(f"{name}: {done / 1e6:.1f}{of} MB", highlight=False)

    return show
