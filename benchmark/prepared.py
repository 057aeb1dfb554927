"""The prepared form that every dataset ends in, so that the harness has one loader.

A folder with one `<modality>.npy` per modality (samples first, compact dtype, memory-mapped), an `index.csv`
(id, label, domain, one `<modality>_row` column where samples share array rows, one column per named split)
and a `meta.json`. `preparation` writes it; here it is read, and refused where today's dataset would give
another one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmark.dataset import PARTS, DatasetCard, file_digest
from benchmark.errors import DataError, SchemaError
from benchmark.protocol import digest

SCHEMA = 1
META, INDEX = "meta.json", "index.csv"

Rows = NDArray[np.int64]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalisation(_Stored):
    """Mean and standard deviation of a modality, over all its values."""

    mean: float
    std: float


class ArrayMeta(_Stored):
    """One array file: `rows` samples of `shape`; size and sha256 of the whole file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    rows: int
    bytes: int
    sha256: str


class SplitMeta(_Stored):
    """Samples per part, and each modality's normalisation fitted on the training part alone.

    `census` says for each part how the samples came to be so many; empty where all that were expected are there.
    """

    counts: dict[str, int]
    normalisation: dict[str, Normalisation]
    census: dict[str, dict[str, int]] = {}


class Meta(_Stored):
    """`meta.json` but for its `schema` number."""

    dataset: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    samples: int
    modalities: dict[str, ArrayMeta]
    splits: dict[str, SplitMeta]
    index_sha256: str
    manifest_digest: str
    source_digest: str

    @property
    def content_digest(self) -> str:
        """Sha256 (hex) over index and arrays: equal when the prepared data are equal."""
        arrays = {name: array.sha256 for name, array in self.modalities.items()}
        return digest({"index": self.index_sha256, "arrays": arrays})


@dataclass(frozen=True)
class Index:
    """The samples (n,): labels, domains or None, array rows by modality, parts by split as text."""

    ids: tuple[str, ...]
    labels: Rows
    domains: Rows | None
    rows: Mapping[str, Rows]
    parts: Mapping[str, NDArray[np.str_]]

    def check(self, card: DatasetCard, array_rows: Mapping[str, int]) -> None:
        """Raise DataError for samples that contradict each other, the card or the arrays, or that leak."""
        again = f"Correct the preparation of {card.name}."
        n = len(self.ids)
        numbers = {"label": (self.labels, len(card.classes))}
        numbers |= {f"{m} row": (rows, array_rows[m]) for m, rows in self.rows.items()}
        if self.domains is not None:
            numbers["domain"] = (self.domains, len(card.domains))
        for name, values in {**{name: values for name, (values, _) in numbers.items()}, **self.parts}.items():
            if len(values) != n:
                raise DataError(f"{card.name}: {n} ids, but {len(values)} values of {name!r}. {again}")
        for name, (values, limit) in numbers.items():
            odd = values[(values < 0) | (values >= limit)]
            if odd.size:
                raise DataError(f"{card.name}: {name} {odd[0]} is outside 0 .. {limit - 1}. {again}")
        if len(set(self.ids)) != n:
            raise DataError(f"{card.name}: {n} samples have {len(set(self.ids))} different ids. {again}")
        for split, parts in self.parts.items():
            found = set(parts.tolist()) - {""}
            if found != set(PARTS):
                raise DataError(
                    f"{card.name}: split {split!r} has the parts {sorted(found)}, not {list(PARTS)}. {again}"
                )
            for modality, rows in self.rows.items():
                self._refuse_overlap(card.name, split, parts, modality, rows)

    def _refuse_overlap(self, name: str, split: str, parts: NDArray[np.str_], modality: str, rows: Rows) -> None:
        for first, second in combinations(PARTS, 2):
            shared = np.intersect1d(rows[parts == first], rows[parts == second])
            if shared.size:
                users = [self.ids[i] for i in np.flatnonzero((rows == shared[0]) & np.isin(parts, (first, second)))]
                raise DataError(
                    f"{name}: {modality} row {shared[0]} is in both {first} and {second} of split {split!r} "
                    f"(samples {', '.join(users)}; {shared.size} such rows). Correct its preparation."
                )

    def table(self, card: DatasetCard) -> list[list[str]]:
        """Return `index.csv` as rows of text; a row column that would only count is left out."""
        n = len(self.ids)
        domains = [""] * n if self.domains is None else [card.domains[number] for number in self.domains]
        columns: dict[str, Sequence[object]] = {
            "id": self.ids,
            "label": [card.classes[number] for number in self.labels],
            "domain": domains,
        }
        columns |= {f"{m}_row": r.tolist() for m, r in self.rows.items() if not np.array_equal(r, np.arange(n))}
        columns |= {split: parts.tolist() for split, parts in self.parts.items()}
        return [
            list(columns),
            *([str(value) for value in row] for row in zip(*columns.values(), strict=True)),
        ]

    @classmethod
    def from_table(cls, table: Sequence[Sequence[str]], card: DatasetCard) -> Index:
        """Read what `table` wrote."""
        header, *lines = table
        column = dict(zip(header, zip(*lines, strict=True), strict=True))
        classes = {name: number for number, name in enumerate(card.classes)}
        domains = {name: number for number, name in enumerate(card.domains)}
        has_domains = bool(domains) and any(column["domain"])
        return cls(
            ids=column["id"],
            labels=np.array([classes[name] for name in column["label"]], np.int64),
            domains=np.array([domains[name] for name in column["domain"]], np.int64) if has_domains else None,
            rows={m: np.array(column.get(f"{m}_row", range(len(lines))), np.int64) for m in card.modalities},
            parts={split: np.array(column[split], np.str_) for split in card.splits},
        )


@dataclass(frozen=True)
class Prepared:
    """An opened and checked prepared folder."""

    folder: Path
    meta: Meta
    index: Index

    def array(self, modality: str) -> np.memmap[Any, Any]:
        """Return the array (rows, *shape), mapped for reading: shared by processes, never in memory as a whole."""
        # Not copy-on-write: for that the system sets memory aside, and refuses what is larger than the machine's.
        array: np.memmap[Any, Any] = np.load(self.folder / self.meta.modalities[modality].file, mmap_mode="r")
        return array


def manifest_digest(card: DatasetCard) -> str:
    """Return the sha256 (hex) of what the sources must be: names, checksums and the members of archives."""
    sources = []
    for source in card.sources:
        files = source.manifest.files if source.manifest else {}
        whole = source.checksum.sha256 if source.checksum else None
        sources.append([source.file, whole, {path: member.sha256 or member.md5 for path, member in files.items()}])
    return digest(sources)


def open_prepared(card: DatasetCard, folder: Path, source_digest: str) -> Prepared:
    """Open and check a prepared folder.

    Raises DataError when it is missing, truncated, corrupt, leaky or made by another version of the dataset,
    and SchemaError when a newer version of the suite wrote it.
    """
    again = f"Run `equipoise prepare {card.name}`."
    if not (folder / META).is_file():
        fetch = f"`equipoise fetch {card.name}`, then " if card.sources else ""
        raise DataError(f"{card.name}: no prepared data in {folder}. Run {fetch}`equipoise prepare {card.name}`.")
    meta = _read_meta(folder / META, again)
    if meta.source_digest != source_digest or meta.manifest_digest != manifest_digest(card):
        raise DataError(
            f"{card.name}: the data in {folder} were prepared by another version of the dataset "
            f"({meta.source_digest[:12]}, now {source_digest[:12]}). {again}"
        )
    for array in meta.modalities.values():
        file = folder / array.file
        found = file.stat().st_size if file.is_file() else 0
        if found != array.bytes:
            raise DataError(f"{card.name}: {file} has {found} bytes instead of {array.bytes}. {again}")
    if not (folder / INDEX).is_file() or file_digest(folder / INDEX) != meta.index_sha256:
        raise DataError(f"{card.name}: {folder / INDEX} is missing or was changed. {again}")
    with (folder / INDEX).open(newline="", encoding="utf-8") as stream:
        index = Index.from_table(list(csv.reader(stream)), card)
    index.check(card, {name: array.rows for name, array in meta.modalities.items()})
    return Prepared(folder, meta, index)


def _read_meta(file: Path, again: str) -> Meta:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise SchemaError(f"{file} has schema {schema}; known is {SCHEMA}. Update equipoise, or: {again}")
        return Meta.model_validate(content)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{file} is unreadable ({type(error).__name__}). {again}") from None
