"""From verified raw files to the prepared form, in one rename: a prepared folder is whole or absent."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray

from benchmark.dataset import PARTS, Dataset, DatasetCard, file_digest, storage_error
from benchmark.errors import DataError
from benchmark.journal import ArrayFile, Fact, Journal, Made, OnDisk, ReadByRows, replacing
from benchmark.paths import prepared_home, raw_home
from benchmark.prepared import (
    INDEX,
    META,
    SCHEMA,
    ArrayMeta,
    Index,
    Meta,
    Normalisation,
    Prepared,
    Rows,
    SplitMeta,
    manifest_digest,
    open_prepared,
)
from benchmark.protocol import digest
from benchmark.registry import DATASETS

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Takes what is counted, how many are done and how many there are."""


class PreparedWriter:
    """What `Dataset.prepare` writes to: an array per modality, then the samples; `say` prints a line."""

    def __init__(
        self,
        card: DatasetCard,
        folder: Path,
        say: Say,
        progress: Progress = lambda *_: None,
        jobs: int | None = None,
        journals: Path | None = None,
    ) -> None:
        self.card = card
        self.say = say
        self.jobs = jobs
        self._folder = folder
        self._journals = journals or folder
        self._progress = progress
        self._files: dict[str, ArrayMeta] = {}
        self._index: Index | None = None
        self._census: Mapping[str, Mapping[str, Mapping[str, int]]] = {}

    def array(self, modality: str, values: NDArray[Any]) -> None:
        """Store a modality's array (rows, *shape) as it is: choose a compact dtype (uint8, float16)."""
        file = self._file(modality, len(values), values.dtype)
        content = file.bytes_of(values)
        with file.open(0) as stream:
            stream.write(content)
        self._keep(modality, file)

    def store(
        self,
        keys: Sequence[str],
        dtypes: Mapping[str, DTypeLike],
        make: Callable[[int], Generator[Made[Fact], None, None]],
        kind: type[Fact],
    ) -> list[Fact]:
        """Store arrays of the modalities in `dtypes` that have a row of each for every one of `keys`, as they are made.

        They are never in memory as a whole, and a preparation that was stopped goes on with the first row that it has
        not stored: `make(n)` gives, for every key from number n on, its row by modality (*shape) and a fact, of the
        dataclass `kind`, that is kept with it. Returns the facts of all keys. Where other keys were stored before, all
        begins anew. Raises DataError for another number of rows, or rows that contradict the card.
        """
        files = {modality: self._file(modality, len(keys), dtype) for modality, dtype in dtypes.items()}
        label = f"{self.card.name}: {', '.join(files)}"
        journal = Journal(self._journals / f"{'+'.join(files)}.jsonl", keys, files, kind)
        if done := len(journal.stored()):
            self.say(f"{label}: {done} of {len(keys)} were stored before; going on from there")
        facts = journal.complete(make, lambda stored: self._progress(label, stored, len(keys)))
        for modality, file in files.items():
            self._keep(modality, file)
        return facts

    def stored(self, modality: str) -> ReadByRows:
        """Return what is stored of a modality, to be read a few rows at a time."""
        return OnDisk(self._folder / self._files[modality].file)

    def _file(self, modality: str, count: int, dtype: DTypeLike) -> ArrayFile:
        name = f"{self.card.name}: {modality}"
        shape = self.card.shapes.get(modality)
        if shape is None:
            raise DataError(f"{name} is no modality of its card ({', '.join(self.card.shapes)}). Correct one of them.")
        return ArrayFile(name, self._folder / f"{modality}.npy", shape, np.dtype(dtype), count)

    def _keep(self, modality: str, file: ArrayFile) -> None:
        self._files[modality] = ArrayMeta(
            file=file.path.name,
            dtype=file.dtype.str,
            shape=file.shape,
            rows=file.count,
            bytes=file.path.stat().st_size,
            sha256=file_digest(file.path),
        )

    def samples(
        self,
        ids: Sequence[str],
        labels: Sequence[int],
        *,
        splits: Mapping[str, Sequence[str]],
        domains: Sequence[int] | None = None,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Declare each sample's id, class, part in every named split ("" for none), domain and array rows.

        A modality missing from `rows` has one array row per sample, in order.
        """
        own = range(len(ids))
        self._index = Index(
            ids=tuple(ids),
            labels=np.array(labels, np.int64),
            domains=None if domains is None else np.array(domains, np.int64),
            rows={m: np.array((rows or {}).get(m, own), np.int64) for m in self.card.modalities},
            parts={name: np.array(parts, np.str_) for name, parts in splits.items()},
        )

    def census(self, counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
        """Keep, by split and part, how the samples came to be so many: numbers of what was listed, found and so on."""
        self._census = counts

    def finish(self, source_digest: str) -> Meta:
        """Check all, fit the normalisations, write index and meta; raises DataError for a contradiction."""
        card, index = self.card, self._index
        if index is None or self._files.keys() != card.shapes.keys() or index.parts.keys() != card.splits.keys():
            raise DataError(
                f"{card.name}: its preparation gave the arrays {sorted(self._files)} and the splits "
                f"{sorted(index.parts) if index else []}; its card says {sorted(card.shapes)} and "
                f"{sorted(card.splits)}. Correct one of them."
            )
        index.check(card, {name: file.rows for name, file in self._files.items()})
        arrays = {name: self.stored(name) for name in self._files}
        with (self._folder / INDEX).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows(index.table(card))
        meta = Meta(
            dataset=card.name,
            classes=card.classes,
            domains=card.domains,
            samples=len(index.ids),
            modalities=self._files,
            splits={
                split: SplitMeta(
                    counts={part: int((parts == part).sum()) for part in PARTS},
                    normalisation={
                        name: fit_normalisation(
                            array, np.unique(index.rows[name][parts == "train"]), zero=card.zeros.get(name)
                        )
                        for name, array in arrays.items()
                    },
                    census={part: dict(numbers) for part, numbers in self._census.get(split, {}).items()},
                )
                for split, parts in index.parts.items()
            },
            index_sha256=file_digest(self._folder / INDEX),
            manifest_digest=manifest_digest(card),
            source_digest=source_digest,
        )
        text = json.dumps({"schema": SCHEMA, **meta.model_dump(mode="json", exclude_defaults=True)}, indent=2)
        (self._folder / META).write_text(text + "\n", encoding="utf-8")
        return meta


def fit_normalisation(
    array: ReadByRows, rows: Rows, largest: int = 4_000_000, *, zero: float | None = None
) -> Normalisation:
    """Return mean and standard deviation (ddof 0) over all values of the given rows, in double precision.

    With a `zero`, that is taken for the mean and the deviation is about it. They are summed over blocks of at most 256
    rows and, but for single rows, `largest` values. A constant array gets the standard deviation 1, so that it
    normalises to zeros.
    """
    block = max(1, min(256, largest // int(np.prod(array.shape[1:]))))
    blocks = [rows[start : start + block] for start in range(0, len(rows), block)]
    count = len(rows) * int(np.prod(array.shape[1:]))
    mean = zero
    if mean is None:
        mean = sum(float(array[part].sum(dtype=np.float64)) for part in blocks) / count
    variance = sum(_squares(array[part], mean) for part in blocks) / count
    return Normalisation(mean=mean, std=variance**0.5 or 1.0)


def _squares(values: NDArray[Any], mean: float) -> float:
    """Return the sum of the squares about a mean, with one array in double precision at a time."""
    off = np.subtract(values, mean, dtype=np.float64)
    return float(np.square(off, out=off).sum())


def prepare(name: str, *, say: Say = print, progress: Progress = lambda *_: None, jobs: int | None = None) -> Prepared:
    """Write a registered dataset's prepared form; raises DataError if raw files are missing or broken.

    `progress` gets what is stored, how many of it and of how many; `jobs` processes decode (None: one per core).
    """
    dataset, raw, folder, source_digest = _registered(name)
    return write_prepared(dataset, raw, folder, source_digest, say=say, progress=progress, jobs=jobs)


def obtain(name: str) -> Prepared:
    """Open a registered dataset's prepared form; raises DataError where `equipoise prepare` has to run first.

    A dataset without sources needs nothing that could be missing: it is prepared on first use.
    """
    dataset, raw, folder, source_digest = _registered(name)
    try:
        return open_prepared(dataset.card, folder, source_digest)
    except DataError:
        if dataset.card.sources:
            raise
    return write_prepared(dataset, raw, folder, source_digest, say=lambda _: None, reuse=True)


def _registered(name: str) -> tuple[Dataset, Path, Path, str]:
    dataset = DATASETS.load(name)()
    return (
        dataset,
        raw_home(dataset.card.raw_name),
        prepared_home(name),
        DATASETS.entry(name).source_digest(),
    )


def write_prepared(
    dataset: Dataset,
    raw: Path,
    folder: Path,
    source_digest: str,
    *,
    say: Say = print,
    progress: Progress = lambda *_: None,
    jobs: int | None = None,
    reuse: bool = False,
) -> Prepared:
    """Verify the sources below `raw`, run the dataset's preparation and put its result at `folder`.

    With `reuse`, what another process has prepared while this one waited for the lock is taken as it is. What a run
    that was stopped has stored is kept for the next one of the same dataset from the same sources.
    """
    card = dataset.card
    for source in card.sources:
        check = source.check(raw)
        say(str(check))
        if not check.complete:
            raise DataError(
                f"{card.name}: {check.faults()} in {raw}. Run `equipoise fetch {card.name}`, then try again."
            )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if reuse:
                try:
                    return open_prepared(card, folder, source_digest)
                except DataError:
                    pass
            with replacing(folder, digest([SCHEMA, source_digest, manifest_digest(card)])) as (work, journals):
                writer = PreparedWriter(card, work, say, progress, jobs, journals)
                dataset.prepare(raw, writer)
                meta = writer.finish(source_digest)
    except OSError as error:
        raise storage_error(error, error.filename or folder, f"equipoise prepare {card.name}") from error
    for name, split in meta.splits.items():
        say(f"split {name}: " + ", ".join(f"{part} {count}" for part, count in split.counts.items()))
    return open_prepared(card, folder, source_digest)
