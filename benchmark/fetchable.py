"""What `equipoise fetch` brings by its name: a dataset's files, or a backbone's published weights."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import NamedTuple

from benchmark.dataset import Source, Verification
from benchmark.download import Progress
from benchmark.errors import unknown_name
from benchmark.fetch import fetch_sources, survey_sources
from benchmark.fetch_plan import Survey
from benchmark.paths import raw_home
from benchmark.registry import BACKBONES, DATASETS


class _Fetchable(NamedTuple):
    """Sources, the name that they have in a mirror, the folder that they are brought into, and a dataset's terms."""

    name: str
    sources: tuple[Source, ...]
    destination: Path
    terms: str | None = None


def fetch_named(name: str, *, progress: Progress = lambda *_: None) -> list[Verification]:
    """Bring all files of the dataset, else of the backbone, called `name` into the data home.

    Raises UsageError for an unknown name, DataError when a file cannot be had or verified.
    """
    found = _fetchable(name)
    return fetch_sources(found.name, found.sources, found.destination, progress=progress)


def survey_named(name: str) -> Survey | None:
    """Return what `fetch_named` would find and bring, None where there is nothing to fetch."""
    found = _fetchable(name)
    return survey_sources(found.name, found.sources, found.destination) if found.sources else None


def terms(name: str) -> str | None:
    """Return the terms under which a dataset's files are given, None where there are none to fetch."""
    found = _fetchable(name)
    return found.terms if found.sources else None


def _fetchable(name: str) -> _Fetchable:
    if name in DATASETS.names():
        card = DATASETS.load(name).card
        return _Fetchable(card.raw_name, card.sources, raw_home(card.raw_name), card.licence)
    if name in BACKBONES.names():
        # Imported here: the files of a dataset come without torch.
        from benchmark.backbones.weights import weights_folder

        # Names may share a file: each is fetched once.
        sources = tuple(dict.fromkeys(chain.from_iterable(BACKBONES.load(name).weights.values())))
        return _Fetchable(name, sources, weights_folder(name))
    raise unknown_name("dataset or backbone", name, [*DATASETS.names(), *BACKBONES.names()])
