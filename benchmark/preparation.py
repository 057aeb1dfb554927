"""From verified raw files to the prepared form, in one rename: a prepared folder is whole or absent."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray

from benchmark.dataset import PARTS, Dataset, DatasetCard, file_digest, storage_error
from benchmark.errors import DataError
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
from benchmark.registry import DATASETS

Say = Callable[[str], None]


class RowWriter:
    """What `PreparedWriter.rows` hands out: takes an array's rows in order, a block at a time."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, stream: BinaryIO) -> None:
        self.written = 0
        self._name = name
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._stream = stream

    def write(self, values: NDArray[Any]) -> None:
        """Append rows (k, *shape); raises DataError for another shape or dtype, or a value that is not finite."""
        if values.shape[1:] != self._shape:
            raise DataError(
                f"{self._name} samples have shape {values.shape[1:]}, its card says {self._shape}. Correct one of them."
            )
        if values.dtype != self._dtype:
            raise DataError(f"{self._name} rows have dtype {values.dtype}, not {self._dtype}. Convert them.")
        if not np.isfinite(values).all():
            raise DataError(f"{self._name} holds values that are not finite. Check its preparation.")
        self._stream.write(np.ascontiguousarray(values).data)
        self.written += len(values)


class PreparedWriter:
    """What `Dataset.prepare` writes to: an array per modality, then the samples; `say` prints a line."""

    def __init__(self, card: DatasetCard, folder: Path, say: Say) -> None:
        self.card = card
        self.say = say
        self._folder = folder
        self._files: dict[str, ArrayMeta] = {}
        self._index: Index | None = None
        self._census: Mapping[str, Mapping[str, Mapping[str, int]]] = {}

    def array(self, modality: str, values: NDArray[Any]) -> None:
        """Store a modality's array (rows, *shape) as it is: choose a compact dtype (uint8, float16)."""
        with self.rows(modality, len(values), values.dtype) as rows:
            rows.write(values)

    @contextmanager
    def rows(self, modality: str, count: int, dtype: DTypeLike) -> Iterator[RowWriter]:
        """Store a modality's array of `count` rows block by block: it is never in memory as a whole.

        Several modalities may be open at once. Raises DataError when another number of rows was written.
        """
        name = f"{self.card.name}: {modality}"
        shape = self.card.shapes.get(modality)
        if shape is None:
            raise DataError(f"{name} is no modality of its card ({', '.join(self.card.shapes)}). Correct one of them.")
        path = self._folder / f"{modality}.npy"
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        # Through the file object rather than a memory map: a full disk is then an error and not a bus error.
        with path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {**header, "shape": (count, *shape)})
            rows = RowWriter(name, shape, dtype, stream)
            yield rows
        if rows.written != count:
            raise DataError(f"{name} has {rows.written} rows instead of {count}. Check its preparation.")
        self._files[modality] = ArrayMeta(
            file=path.name,
            dtype=np.dtype(dtype).str,
            shape=shape,
            rows=count,
            bytes=path.stat().st_size,
            sha256=file_digest(path),
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
        arrays = {name: np.load(self._folder / file.file, mmap_mode="r") for name, file in self._files.items()}
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


class ReadByRows(Protocol):
    """An array of which some rows at a time are read: in memory, in a file or on a device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and the shape of one."""
        ...

    def __getitem__(self, rows: Rows, /) -> NDArray[Any]:
        """Return these rows."""
        ...


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
    variance = sum(float(np.square(array[part].astype(np.float64) - mean).sum()) for part in blocks) / count
    return Normalisation(mean=mean, std=variance**0.5 or 1.0)


def prepare(name: str, *, say: Say = print) -> Prepared:
    """Write a registered dataset's prepared form; raises DataError if raw files are missing or broken."""
    dataset, raw, folder, source_digest = _registered(name)
    return write_prepared(dataset, raw, folder, source_digest, say=say)


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
    dataset: Dataset, raw: Path, folder: Path, source_digest: str, *, say: Say = print, reuse: bool = False
) -> Prepared:
    """Verify the sources below `raw`, run the dataset's preparation and put its result at `folder`.

    With `reuse`, what another process has prepared while this one waited for the lock is taken as it is.
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
            meta = _replace(dataset, raw, folder, source_digest, say)
    except OSError as error:
        raise storage_error(error, folder, f"equipoise prepare {card.name}") from error
    for name, split in meta.splits.items():
        say(f"split {name}: " + ", ".join(f"{part} {count}" for part, count in split.counts.items()))
    return open_prepared(card, folder, source_digest)


def _replace(dataset: Dataset, raw: Path, folder: Path, source_digest: str, say: Say) -> Meta:
    """Write beside `folder`, then rename: a killed run leaves nothing that looks finished."""
    work, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (work, old):
        shutil.rmtree(leftover, ignore_errors=True)
    work.mkdir()
    try:
        writer = PreparedWriter(dataset.card, work, say)
        dataset.prepare(raw, writer)
        meta = writer.finish(source_digest)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return meta
