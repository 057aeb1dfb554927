"""Fetching sources, as a dataset has them: local copy, mirror, then every URL, with resume, retries and verification.

A file gets its final name only once its bytes are verified, and is never removed after that. An unfinished
download waits beside it as `<name>.part` and is resumed. Files come several at a time; one that cannot be had keeps
no other from coming.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx
from filelock import FileLock

from benchmark.dataset import Dataset, Source, Verification, storage_error
from benchmark.download import Downloader, Patience, Progress
from benchmark.errors import DataError, UsageError
from benchmark.fetch_outcome import MIRROR_VARIABLE, incomplete
from benchmark.fetch_plan import Survey, survey
from benchmark.fetcher import Fetcher
from benchmark.hosts import Hosts


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
    the dataset whose sources they are, and is looked at before any URL. Raises DataError before anything is asked for
    when the disk is too small, and at the end, when all that can be had is there, for what cannot be had or verified.
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
    local = _mirror_of(name, mirror)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with FileLock(destination / ".lock"), _downloader(patience, progress) as downloader:
            found = survey(sources, destination, local, downloader)
            short = found.shortage()
            if short:
                raise DataError(f"{name}: {short} Free some space and run `equipoise fetch {name}` again.")
            outcomes = Fetcher(destination, local, downloader).bring(found.plans)
    except OSError as error:
        raise storage_error(error, error.filename or destination, f"equipoise fetch {name}") from error
    left = incomplete(name, outcomes, destination)
    if left:
        raise left
    return [outcome.found for outcome in outcomes]


def survey_sources(
    name: str,
    sources: Sequence[Source],
    destination: Path,
    mirror: Path | None = None,
    *,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> Survey:
    """Return what `fetch_sources` would find and bring, and bring nothing."""
    with _downloader(patience, lambda *_: None) as downloader:
        return survey(sources, destination, _mirror_of(name, mirror), downloader)


def _mirror_of(name: str, mirror: Path | None) -> Path | None:
    """Return the folder of what `name` has in the given mirror, else in that of the environment."""
    text = os.environ.get(MIRROR_VARIABLE)
    if mirror is None and text:
        mirror = Path(text).resolve()
        if not mirror.is_dir():
            raise UsageError(f"{MIRROR_VARIABLE} is {text!r}, which is no folder. Correct or unset it.")
    return mirror / name if mirror else None


@contextmanager
def _downloader(patience: Patience, progress: Progress) -> Iterator[Downloader]:
    stopped = Event()
    # No compression on the way: resuming counts bytes as they are stored.
    headers = {"Accept-Encoding": "identity", "User-Agent": "equipoise"}
    with httpx.Client(follow_redirects=True, timeout=patience.stall, headers=headers) as client:
        hosts = (Hosts(limit, stopped) for limit in (patience.files, 1))
        yield Downloader(client, patience, progress, *hosts)
