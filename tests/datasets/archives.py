"""Every dataset of clips as its users have it: a look-alike, fetched and prepared by the code that they run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmark.dataset import Dataset, Verification
from benchmark.fetch import fetch
from benchmark.preparation import prepare
from benchmark.prepared import Prepared
from tests.datasets.epic_lookalike import write_epic
from tests.datasets.hac_lookalike import write_hac
from tests.datasets.kinetics_lookalike import write_kinetics_sounds
from tests.datasets.lookalikes import Lookalike, write_cremad
from tests.datasets.ucf51_lookalike import write_ucf51

LOOKALIKES: Mapping[str, Callable[[Path], Lookalike]] = {
    "cremad": write_cremad,
    "kinetics_sounds": write_kinetics_sounds,
    "ucf51": write_ucf51,
    "hac": write_hac,
    "epic_kitchens": write_epic,
}
"""What writes a look-alike into a folder, by the name of the dataset whose files these are."""


@dataclass(frozen=True)
class Archive:
    """A look-alike, fetched from a mirror below `home` and prepared; `said` are the lines printed."""

    lookalike: Lookalike
    home: Path
    raw: Path
    found: list[Verification]
    prepared: Prepared
    said: list[str]

    def row(self, modality: str, sample: str) -> NDArray[np.float64]:
        """Return what is stored of a sample."""
        index = self.prepared.index
        row: NDArray[np.float64] = self.prepared.array(modality)[index.rows[modality][index.ids.index(sample)]]
        return row.astype(np.float64)


@contextmanager
def installed(lookalike: Lookalike, home: Path) -> Iterator[None]:
    """Give the datasets the look-alike's cards and `home` for data."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, card in lookalike.cards.items():
            patch.setattr(kind, "card", card)
        patch.setenv("EQUIPOISE_DATA", str(home))
        yield


def bring(lookalike: Lookalike, raw: Path) -> None:
    """Put what no URL leads to where a person is asked to put it."""
    for card in lookalike.cards.values():
        for source in card.sources:
            if source.suffix:
                shutil.copytree(lookalike.folder / source.file, raw / source.file)


@contextmanager
def archive_of(dataset: type[Dataset], home: Path) -> Iterator[Archive]:
    """Give a dataset's look-alike, fetched from a mirror and prepared below `home`."""
    name, owner = dataset.card.name, dataset.card.raw_name
    lookalike, raw = LOOKALIKES[owner](home / "mirror" / owner), home / "raw" / owner
    bring(lookalike, raw)
    with installed(lookalike, home):
        found = fetch(dataset, raw, home / "mirror")
        said: list[str] = []
        yield Archive(lookalike, home, raw, found, prepare(name, say=said.append), said)
