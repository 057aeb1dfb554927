"""Bringing planned files, several at a time: what is there, the mirror's, then one place after another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmark.archive import unpack
from benchmark.dataset import Checksum, Manifest
from benchmark.download import Address, Downloader, naming, part_of, size_of
from benchmark.fetch_outcome import Outcome
from benchmark.fetch_plan import Plan, urls_of
from benchmark.fetch_progress import LARGE
from benchmark.hosts import UnavailableError
from benchmark.lfs import Repository
from benchmark.threads import each

AT_ONCE, LARGE_AT_ONCE = 8, 3
"""Files that come at the same time: more small ones, which mostly wait, than large ones, which share the rate."""


@dataclass(frozen=True)
class _Job:
    """One file to bring, or one archive with what it holds, and its size in bytes where that is known."""

    size: int | None
    run: Callable[[], None]

    @property
    def large(self) -> bool:
        return self.size is None or self.size >= LARGE


# What a place where a file may be had is called, and how its address is learnt.
_Place = tuple[str, Callable[[], Address]]


@dataclass(frozen=True)
class Fetcher:
    """Brings what plans name below `destination`, from a mirror's folder of the dataset or from its URLs."""

    destination: Path
    mirror: Path | None
    downloader: Downloader

    def bring(self, plans: Sequence[Plan]) -> list[Outcome]:
        """Bring all that can be had; raises OSError when nothing can be written any more."""
        outcomes = [Outcome(plan.source, plan.check) for plan in plans]
        jobs: list[_Job] = []
        singles: list[_Job] = []
        archives: list[tuple[Outcome, Manifest]] = []
        for plan, outcome in zip(plans, outcomes, strict=True):
            self._announce(plan)
            manifest, whole = plan.source.manifest, plan.files[0].size if plan.files else 0
            if plan.check.complete or plan.source.suffix:
                continue
            if manifest is None:
                jobs.append(_Job(whole, partial(self._whole, outcome)))
            elif plan.source.urls or plan.source.obtain:
                jobs.append(_Job(whole, partial(self._archive, outcome, manifest)))
                archives.append((outcome, manifest))
            else:
                singles += self._singles(outcome, manifest, {file.path: file.size for file in plan.files})
        # Lists and the like first: nothing can be done with thousands of clips without them.
        self._run([*jobs, *singles])
        # What no archive held.
        self._run(job for outcome, manifest in archives for job in self._singles(outcome, manifest, {}))
        for outcome in outcomes:
            if outcome.found.complete:
                outcome.source.remember(self.destination)
        return outcomes

    def _announce(self, plan: Plan) -> None:
        """Report what is to come, so that the time left is that of all of it."""
        for file in plan.files:
            if file.lies != "here":
                self.downloader.progress(file.path, size_of(part_of(self.destination / file.path)), file.size)

    def _run(self, jobs: Iterable[_Job]) -> None:
        jobs = list(jobs)
        for large, at_once in ((False, AT_ONCE), (True, LARGE_AT_ONCE)):
            own = [job for job in jobs if job.large is large]
            each(lambda job: job.run(), own, at_once, self.downloader.stopped)

    def _whole(self, outcome: Outcome) -> None:
        """Bring a source that is one file."""
        source = outcome.source
        problems = self._file(source.file, _places(source.urls), source.known(self.destination))
        outcome.problems += problems
        if not problems:
            outcome.brought.add(source.file)

    def _singles(self, outcome: Outcome, manifest: Manifest, sizes: Mapping[str, int | None]) -> list[_Job]:
        """Return the jobs of the files of a manifest that are still wanted, if they can be had one by one."""
        found = outcome.found
        wanted = {path: manifest.files[path] for path in (*found.missing, *found.broken)}
        repositories = [Repository(url, self.downloader, wanted.values()) for url in manifest.lfs]
        if not (manifest.urls or repositories):
            return []

        def bring(path: str, checksum: Checksum) -> None:
            objects = [(f"{path} in {one.url}", partial(one.address, checksum)) for one in repositories]
            problems = self._file(path, [*objects, *_places(urls_of(manifest, path))], checksum)
            if problems:
                outcome.refused[path] = "; ".join(problems)
            else:
                outcome.brought.add(path)

        return [
            _Job(checksum.size or sizes.get(path), partial(bring, path, checksum)) for path, checksum in wanted.items()
        ]

    def _file(self, name: str, places: Sequence[_Place], checksum: Checksum | None) -> list[str]:
        """Bring one verified file to `destination / name`; returns what each way answered when none had it."""
        problems: list[str] = []
        target = self.destination / name
        for _, way in self._ways(name, places, checksum, problems):
            _keep(way, target)
            self.downloader.progress(name, size_of(target), size_of(target))
            return []
        return problems

    def _archive(self, outcome: Outcome, manifest: Manifest) -> None:
        """Unpack one copy of the archive after another until all of the manifest is there."""
        source = outcome.source
        for origin, archive in self._ways(source.file, _places(source.urls), source.checksum, outcome.problems):
            try:
                broken, unknown = unpack(archive, manifest, self.destination)
            except UnavailableError as error:
                outcome.problems.append(f"{origin}: {error}")
                continue
            outcome.unknown = unknown
            check = source.check(self.destination)
            missing = tuple(path for path in check.missing if path not in broken)
            faults = {**check.broken, **broken}
            outcome.brought |= manifest.files.keys() - {*missing, *faults}
            if check.complete:
                if archive.parent == self.destination:
                    _keep(archive, self.destination / source.file)
                return
            left = replace(check, source=origin, missing=missing, broken=faults, unknown=unknown)
            outcome.problems.append(left.faults())

    def _ways(
        self, name: str, places: Sequence[_Place], checksum: Checksum | None, problems: list[str]
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
        if not places and not problems:
            problems.append(f"{name} is not there")
        part = part_of(target)
        for number, (origin, address) in enumerate(places):
            if checksum is None and number:
                part.unlink(missing_ok=True)  # nothing says that both URLs give the same bytes
            try:
                self.downloader.complete(address(), part, name, checksum)
            except UnavailableError as error:
                problems.append(f"{origin}: {error}")
            else:
                yield origin, part
                part.unlink()


def _places(urls: Iterable[str]) -> list[_Place]:
    return [(url, partial(Address, url)) for url in urls]


def _keep(way: Path, target: Path) -> None:
    """Give a verified file its final name, in one rename; a mirror's file is copied first."""
    part = part_of(target)
    if way not in (part, target):
        with naming(part):
            shutil.copyfile(way, part)
    if way != target:
        part.replace(target)
