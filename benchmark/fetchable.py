"""What `equipoise fetch` brings by its name: a dataset's files, or a backbone's published weights."""

from __future__ import annotations

from itertools import chain

from benchmark.backbones.weights import weights_folder
from benchmark.dataset import Verification
from benchmark.download import Progress
from benchmark.errors import unknown_name
from benchmark.fetch import fetch, fetch_sources
from benchmark.paths import raw_home
from benchmark.registry import BACKBONES, DATASETS


def fetch_named(name: str, *, progress: Progress = lambda *_: None) -> list[Verification]:
    """Bring all files of the dataset, else of the backbone, called `name` into the data home.

    Raises UsageError for an unknown name, DataError when a file cannot be had or verified.
    """
    if name in DATASETS.names():
        dataset = DATASETS.load(name)
        return fetch(dataset, raw_home(dataset.card.raw_name), progress=progress)
    if name in BACKBONES.names():
        # Names may share a file: each is fetched once.
        sources = tuple(dict.fromkeys(chain.from_iterable(BACKBONES.load(name).weights.values())))
        return fetch_sources(name, sources, weights_folder(name), progress=progress)
    raise unknown_name("dataset or backbone", name, [*DATASETS.names(), *BACKBONES.names()])
